"""Primary components: what remains of a batch of features in its k main directions.

Shapes: B batch, D embedding, K kept components. The work is done on whichever side of the
centred batch is shorter: R = max(B, D) rows, C = min(B, D) columns, M = C - K dropped ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from longclip_lab.objectives.checks import check_components, check_finite, check_matrix


def primary_components(features_BD: torch.Tensor, k: int) -> torch.Tensor:
    """Mean + projection on the batch's top-k principal directions: [B, D] -> [B, D].

    The coarse image feature of Long-CLIP's primary component matching (ECCV 2024, section
    3.3), with the exact gradient of that map, through the directions too. It uses only the
    gaps between kept and dropped eigenvalues, so it stays finite when kept ones coincide,
    or dropped ones do; differentiating an SVD gives inf or nan there.

    - k >= min(B - 1, D): the directions span every centred batch. The result is the input
      and the gradient the identity, exactly.
    - A batch of lower rank than k (to the input's precision): the map is not differentiable
      there; the result and the gradient are again the identity.
    - A kept and a dropped singular value that coincide to the input's precision: the
      subspace is not unique. One of the possible subspaces is used, and the rotation between
      these two directions, whose derivative does not exist, gets gradient zero.

    The directions are found in float64; the result has the input's type. Differentiable once.
    Raises LabError for k < 1, an empty batch, NaN.

    >>> features = torch.tensor([[3.0, 0.1], [-3.0, 0.1], [0.0, -0.2]])
    >>> primary_components(features, k=1).round(decimals=3).tolist()
    [[3.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]
    """
    check_matrix(features_BD, "primary_components")
    check_components(k)
    batch, dim = features_BD.shape
    if k >= min(batch - 1, dim):
        check_finite(features=features_BD)
        return features_BD.clone()
    if features_BD.device.type == "mps":
        # Apple's GPUs have neither float64 nor an eigensolver.
        return _PrimaryComponents.apply(features_BD.cpu(), k).to(features_BD.device)
    return _PrimaryComponents.apply(features_BD, k)


def primary_components_svd(features_BD: torch.Tensor, k: int) -> torch.Tensor:
    """The same map as in the official Long-CLIP code: torch.linalg.svd and its autograd.

    [B, D] -> [B, D], float32 or wider. Its gradient divides by the gaps between all
    singular values and so becomes inf or nan where any two coincide, and noisy where they
    nearly do; after centring a batch of B <= D the last one is always about 0.
    """
    check_matrix(features_BD, "primary_components_svd")
    check_components(k)
    check_finite(features=features_BD)
    mean_D = features_BD.mean(dim=0)
    centred_BD = features_BD - mean_D
    centred_BD = centred_BD.to(torch.promote_types(centred_BD.dtype, torch.float32))
    _, _, directions_CD = torch.linalg.svd(centred_BD, full_matrices=False)
    directions_KD = directions_CD[:k]
    return centred_BD @ directions_KD.mT @ directions_KD + mean_D


class _PrimaryComponents(torch.autograd.Function):
    """Y = mean + Xc P with P the projector on the top-k eigenvectors of C = Xc^T Xc.

    First-order perturbation of the eigenprojector, kept i and dropped j:
    dP = sum_ij (v_j^T dC v_i) / (l_i - l_j) (v_j v_i^T + v_i v_j^T); pairs within the kept
    or within the dropped directions cancel, which is why their gaps never appear. With an
    incoming gradient G, S = Xc^T G + G^T Xc and F_ji = (v_j^T S v_i) / (l_i - l_j), the
    gradient is G P + Xc (E + E^T), E = sum_ij F_ji v_j v_i^T, and the mean's own part.
    The map is as well Q Xc with Q the projector on the top-k eigenvectors of Xc Xc^T, so for
    B < D the same formula runs on the transposed batch.
    """

    @staticmethod
    def forward(ctx: Any, features_BD: torch.Tensor, k: int) -> torch.Tensor:
        with torch.autocast(features_BD.device.type, enabled=False):
            spectrum = decompose(features_BD)
            ctx.identity = spectrum.rank < k
            if ctx.identity:
                return features_BD.clone()
            kept_CK = spectrum.vectors_CC[:, -k:].to(spectrum.side_RC.dtype)
            scores_RK = spectrum.side_RC @ kept_CK
            ctx.spectrum, ctx.kept_CK, ctx.scores_RK = spectrum, kept_CK, scores_RK
            coarse_BD = _as_rows(scores_RK @ kept_CK.mT, features_BD.shape)
            coarse_BD += spectrum.mean_D
            return coarse_BD.to(features_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.identity:
            return grad_BD, None
        with torch.autocast(grad_BD.device.type, enabled=False):
            side_RC = ctx.spectrum.side_RC
            wide_BD = grad_BD.to(side_RC.dtype)
            inner_RC = _projector_gradient(
                _as_rows(wide_BD, side_RC.shape), ctx.spectrum, ctx.kept_CK, ctx.scores_RK
            )
            inner_BD = _as_rows(inner_RC, grad_BD.shape)
            inner_BD += wide_BD.mean(dim=0) - inner_BD.mean(dim=0)
            return inner_BD.to(grad_BD.dtype), None


def _projector_gradient(
    grad_RC: torch.Tensor, spectrum: Spectrum, kept_CK: torch.Tensor, scores_RK: torch.Tensor
) -> torch.Tensor:
    """Gradient of X -> X P(X) with respect to X, for the incoming gradient `grad_RC`."""
    k, side_RC = kept_CK.shape[1], spectrum.side_RC
    dropped_CM = spectrum.vectors_CC[:, :-k]
    grad_RK = grad_RC @ kept_CK
    symmetric_CK = side_RC.mT @ grad_RK + grad_RC.mT @ scores_RK
    kept_K, dropped_M1 = spectrum.singular_C[-k:], spectrum.singular_C[:-k, None]
    gap_MK = (kept_K - dropped_M1) * (kept_K + dropped_M1)
    unresolved_MK = kept_K - dropped_M1 <= spectrum.noise
    weight_MK = dropped_CM.mT @ symmetric_CK.to(dropped_CM.dtype) / gap_MK
    rotation_CK = (dropped_CM @ weight_MK.masked_fill(unresolved_MK, 0.0)).to(side_RC.dtype)
    left_R2K = torch.cat([grad_RK + side_RC @ rotation_CK, scores_RK], dim=1)
    return left_R2K @ torch.cat([kept_CK, rotation_CK], dim=1).mT


@dataclass(frozen=True)
class Spectrum:
    """The principal directions of a batch, seen from its shorter side."""

    mean_D: torch.Tensor
    side_RC: torch.Tensor
    """The centred batch, transposed if B < D."""
    singular_C: torch.Tensor
    """Its singular values, ascending; their squares over B are the variances."""
    vectors_CC: torch.Tensor
    """Eigenvectors of side^T side, one a column."""
    noise: torch.Tensor
    """What rounding alone gives a singular value."""

    @property
    def rank(self) -> int:
        """Singular values that stand above the noise."""
        return int((self.singular_C > self.noise).sum())


def decompose(features_BD: torch.Tensor) -> Spectrum:
    """Centre a batch and find its principal directions.

    Forming X^T X squares the spread of the singular values: in float32 a component with
    1e-7 of the largest variance would be lost. Hence float64. The noise is what rounding X
    to its type can add to a singular value, eps * |X|, and never below what forming X^T X
    loses, sqrt(eps * R) * s_1 with the eps of float64.
    """
    narrow = torch.promote_types(features_BD.dtype, torch.float32)
    mean_D = features_BD.mean(dim=0, dtype=torch.float64)
    centred_BD = features_BD - mean_D
    side_RC = centred_BD if len(centred_BD) >= centred_BD.shape[1] else centred_BD.mT
    gram_CC = _upper_gram(side_RC)
    squared_norm = gram_CC.trace() + len(features_BD) * mean_D.square().sum()
    if not squared_norm.isfinite():
        check_finite(features=features_BD)
    squared_C, vectors_CC = torch.linalg.eigh(gram_CC, UPLO="U")
    singular_C = squared_C.clamp(min=0.0).sqrt()
    rounding = torch.finfo(narrow).eps * squared_norm.sqrt()
    floor = (torch.finfo(torch.float64).eps * len(side_RC)) ** 0.5 * singular_C[-1]
    return Spectrum(
        mean_D=mean_D.to(narrow),
        side_RC=side_RC.to(narrow),
        singular_C=singular_C,
        vectors_CC=vectors_CC,
        noise=torch.maximum(rounding, floor),
    )


def _upper_gram(side_RC: torch.Tensor, blocks: int = 8) -> torch.Tensor:
    """The upper triangle of X^T X; torch has no symmetric product, and this saves a third."""
    columns = side_RC.shape[1]
    gram_CC = side_RC.new_zeros(columns, columns)
    step = -(-columns // blocks)
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        target = gram_CC[start:stop, start:]
        torch.mm(side_RC[:, start:stop].mT, side_RC[:, start:], out=target)
    return gram_CC


def _as_rows(matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The matrix, or its transpose, whichever has this shape; a square one is never turned."""
    return matrix if matrix.shape == shape else matrix.mT
