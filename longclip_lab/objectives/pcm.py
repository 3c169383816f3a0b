"""Primary component matching (PCM; Long-CLIP, section 3.3): the coarse image feature.

A long caption says everything about an image, a short one what matters most. PCM gives the short
one an image feature of its own: decompose the batch's image features into principal components,
keep the k that carry most of the variance, and reconstruct. `objectives.longclip` is the loss.

In this order: the map itself, once with an exact gradient and once as in the official code; how its
gradient is computed; and a meter that tells whether a batch can support k components at all.

Shapes: B batch, D embedding, K kept components. The work is done on whichever side of the centred
batch is shorter: R = max(B, D) rows, C = min(B, D) columns or principal directions, M = C - K
dropped ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from longclip_lab.objectives.contrastive import (
    check_components,
    check_finite,
    check_matrix,
    normalize,
)
from longclip_lab.plotting import Plottable

if TYPE_CHECKING:
    import pandas as pd


# --- The coarse feature: what remains of a batch of features in its k principal directions ---


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
        # Of B features at most B - 1 centred directions exist: nothing is left out. This is what
        # a batch of 32 per GPU does with the paper's k = 32.
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
    # Component decomposition, F in the paper: principal directions of the centred batch.
    mean_D = features_BD.mean(dim=0)
    centred_BD = features_BD - mean_D
    centred_BD = centred_BD.to(torch.promote_types(centred_BD.dtype, torch.float32))
    _, _, directions_CD = torch.linalg.svd(centred_BD, full_matrices=False)
    # Component filtration, E: the k most important ones.
    directions_KD = directions_CD[:k]
    # Component reconstruction, the inverse of F.
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
            # Decomposition and filtration: the top-k eigenvectors of the covariance, on the shorter
            # side of the batch.
            batch = _Centred(features_BD)
            directions = _Tridiagonal.of(batch, k) or _Eigenvectors(batch, k)
            ctx.identity = directions.lower_rank
            if ctx.identity:
                return features_BD.clone()
            # Reconstruction: the projection on them, and the mean.
            kept_CK = directions.kept_CK.to(batch.side_RC.dtype)
            scores_RK = batch.side_RC @ kept_CK
            ctx.side_RC, ctx.directions, ctx.scores_RK = batch.side_RC, directions, scores_RK
            coarse_BD = _as_rows(scores_RK @ kept_CK.mT, features_BD.shape)
            coarse_BD += batch.mean_D
            return coarse_BD.to(features_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.identity:
            return grad_BD, None
        with torch.autocast(grad_BD.device.type, enabled=False):
            wide_BD = grad_BD.to(ctx.side_RC.dtype)
            inner_RC = _projector_gradient(
                _as_rows(wide_BD, ctx.side_RC.shape), ctx.side_RC, ctx.directions, ctx.scores_RK
            )
            inner_BD = _as_rows(inner_RC, grad_BD.shape)
            # Through the mean, which was taken away before the projection and added behind it.
            inner_BD += wide_BD.mean(dim=0) - inner_BD.mean(dim=0)
            return inner_BD.to(grad_BD.dtype), None


def _projector_gradient(
    grad_RC: torch.Tensor,
    side_RC: torch.Tensor,
    directions: _Eigenvectors | _Tridiagonal,
    scores_RK: torch.Tensor,
) -> torch.Tensor:
    """Gradient of X -> X P(X) with respect to X, for the incoming gradient `grad_RC`."""
    kept_CK = directions.kept_CK.to(side_RC.dtype)
    grad_RK = grad_RC @ kept_CK
    # S V with S = Xc^T G + G^T Xc, and E V: products with K columns, never a C x C matrix.
    symmetric_CK = side_RC.mT @ grad_RK + grad_RC.mT @ scores_RK
    rotation_CK = directions.rotation(symmetric_CK.double()).to(side_RC.dtype)
    # G P + Xc (E + E^T) = [G V + Xc E V, Xc V] [V, E V]^T, as one product.
    left_R2K = torch.cat([grad_RK + side_RC @ rotation_CK, scores_RK], dim=1)
    return left_R2K @ torch.cat([kept_CK, rotation_CK], dim=1).mT


class _Centred:
    """A batch, centred and seen from its shorter side, with the Gram matrix of that side.

    Forming X^T X squares the spread of the singular values: in float32 a component with
    1e-7 of the largest variance would be lost. Hence float64.
    """

    def __init__(self, features_BD: torch.Tensor):
        self.batch = len(features_BD)
        self.narrow = torch.promote_types(features_BD.dtype, torch.float32)
        mean_D = features_BD.mean(dim=0, dtype=torch.float64)
        centred_BD = features_BD - mean_D
        side_RC = centred_BD if self.batch >= centred_BD.shape[1] else centred_BD.mT
        self.gram_CC = _lower_gram(side_RC)
        self.squared_norm = self.gram_CC.trace() + self.batch * mean_D.square().sum()
        if not self.squared_norm.isfinite():
            check_finite(features=features_BD)
        self.mean_D, self.side_RC = mean_D.to(self.narrow), side_RC.to(self.narrow)

    def noise(self, largest: torch.Tensor | float) -> torch.Tensor:
        """What rounding alone gives a singular value, where `largest` is the largest one.

        Rounding X to its type can add eps * |X|; it is never below what forming X^T X loses,
        sqrt(eps * R) * s_1 with the eps of float64.
        """
        rounding = torch.finfo(self.narrow).eps * self.squared_norm.sqrt()
        floor = (torch.finfo(torch.float64).eps * len(self.side_RC)) ** 0.5 * largest
        return torch.maximum(rounding, torch.as_tensor(floor, device=rounding.device))


class _Eigenvectors:
    """The kept directions of a batch, from all eigenvectors of its Gram matrix: any device."""

    def __init__(self, batch: _Centred, k: int):
        squared_C, vectors_CC = torch.linalg.eigh(batch.gram_CC, UPLO="L")
        singular_C = squared_C.clamp(min=0.0).sqrt()
        self.noise = batch.noise(singular_C[-1])
        self.lower_rank = bool(singular_C[-k] <= self.noise)
        self.kept_CK, self.dropped_CM = vectors_CC[:, -k:], vectors_CC[:, :-k]
        self.kept_K, self.dropped_M1 = singular_C[-k:], singular_C[:-k, None]

    def rotation(self, symmetric_CK: torch.Tensor) -> torch.Tensor:
        """E_i = sum over dropped j of v_j (v_j^T S_i) / (l_i - l_j), for S [C, K]."""
        # l_i - l_j as (s_i - s_j) (s_i + s_j): the difference of squares would cancel.
        gap_MK = (self.kept_K - self.dropped_M1) * (self.kept_K + self.dropped_M1)
        # Where the two cannot be told apart the derivative does not exist: gradient zero.
        unresolved_MK = self.kept_K - self.dropped_M1 <= self.noise
        weight_MK = self.dropped_CM.mT @ symmetric_CK / gap_MK
        return self.dropped_CM @ weight_MK.masked_fill(unresolved_MK, 0.0)


class _Tridiagonal:
    """The same without the dropped eigenvectors, which are most of the work: on the CPU, by LAPACK.

    C = Q T Q^T with T tridiagonal. The kept eigenpairs are T's largest ones, and E_i solves
    (l_i - C) E_i = S_i among the vectors at a right angle to the kept ones: a tridiagonal system
    for each kept direction, so a pass over C numbers instead of a product with all of them.
    """

    def __init__(self, kept_CK, squared_K, lower_rank, reflectors, diagonal_C, beside):
        self.kept_CK, self.squared_K, self.lower_rank = kept_CK, squared_K, lower_rank
        self._reflectors, self._diagonal_C, self._beside = reflectors, diagonal_C, beside

    @classmethod
    def of(cls, batch: _Centred, k: int) -> _Tridiagonal | None:
        """None on another device, and where the smallest kept and the largest dropped singular
        value are too near to be told apart: then it takes all vectors to say which pairs are."""
        if batch.gram_CC.device.type != "cpu":
            return None
        from scipy.linalg import eigh_tridiagonal, lapack

        size = len(batch.gram_CC)
        packed, diagonal_C, beside, scales, _ = lapack.dsytrd(
            batch.gram_CC.numpy(), lower=1, lwork=64 * size
        )
        last = (size - k - 1, size - 1)
        squared, vectors = eigh_tridiagonal(
            diagonal_C, beside, select="i", select_range=last, check_finite=False
        )
        singular = torch.from_numpy(squared).clamp(min=0.0).sqrt()
        noise = batch.noise(singular[-1])
        if not singular[1] - singular[0] > noise:
            return None
        reflectors = (packed, scales)
        kept_CK = torch.from_numpy(_reflected(reflectors, vectors[:, 1:]))
        lower_rank = bool(singular[1] <= noise)
        return cls(kept_CK, squared[1:], lower_rank, reflectors, diagonal_C, beside)

    def rotation(self, symmetric_CK: torch.Tensor) -> torch.Tensor:
        """As `_Eigenvectors.rotation`.

        Each system is singular along v_i itself: rounding leaves the right side a trace of v_i,
        which the solution holds enlarged, at most to its own size; it is taken out at the end.
        """
        from scipy.linalg import lapack

        right = _reflected(self._reflectors, self._dropped_part(symmetric_CK).numpy(), "T")
        tiny = torch.finfo(torch.float64).eps * self.squared_K[-1]
        for column, squared in enumerate(self.squared_K):
            for shift in (squared, squared + tiny):  # T may meet its eigenvalue to the last bit
                *_, solved, failed = lapack.dgtsv(
                    -self._beside, shift - self._diagonal_C, -self._beside, right[:, column]
                )
                if not failed:
                    break
            right[:, column] = solved
        return self._dropped_part(torch.from_numpy(_reflected(self._reflectors, right)))

    def _dropped_part(self, vectors_CK: torch.Tensor) -> torch.Tensor:
        return vectors_CK - self.kept_CK @ (self.kept_CK.mT @ vectors_CK)


def _reflected(reflectors: tuple[Any, Any], vectors_CK: Any, transposed: str = "N") -> Any:
    """Q or Q^T times the vectors, Q in LAPACK's form: reflections of all rows but the first."""
    from scipy.linalg import lapack

    packed, scales = reflectors
    result = vectors_CK.copy(order="F")
    if len(result) > 1:
        rows, *_ = lapack.dormqr(
            "L", transposed, packed[1:, :-1], scales, result[1:], 64 * result.shape[1]
        )
        result[1:] = rows
    return result


def _lower_gram(side_RC: torch.Tensor) -> torch.Tensor:
    """The lower triangle of X^T X; what is above it has no meaning.

    torch has no symmetric product. On the CPU LAPACK's neighbour BLAS has, at half the work.
    """
    if side_RC.device.type != "cpu":
        return side_RC.mT @ side_RC
    from scipy.linalg import blas

    rows_CR = side_RC.numpy().T  # either it or its transpose is in BLAS's order: nothing is copied
    if rows_CR.flags.f_contiguous:
        return torch.from_numpy(blas.dsyrk(1.0, rows_CR, lower=1))
    return torch.from_numpy(blas.dsyrk(1.0, rows_CR.T, trans=1, lower=1))


def _as_rows(matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The matrix, or its transpose, whichever has this shape; a square one is never turned."""
    return matrix if matrix.shape == shape else matrix.mT


# --- The rank meter: can this batch support k components, and do they leave anything out ---

TINY = torch.finfo(torch.float32).tiny
# Above this share of the variance the coarse feature is the feature for every practical end:
# the angle between the two stays under 6 degrees (sin^2 = 0.01).
NEARLY_ALL = 0.99


@dataclass(frozen=True)
class RankMeter(Plottable):
    """What the k primary components hold of a batch of features."""

    batch: int
    dimension: int
    k: int
    rank: int
    """Directions in which the centred batch varies at all; at most batch - 1."""
    effective_rank: float
    """exp of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007):
    equals `rank` when all directions carry the same, 1 when one carries everything."""
    variance_kept: float
    """Share of the variance in the first k directions, 0 to 1."""
    is_identity: bool
    """True when k >= rank: the coarse features are the features."""
    spectrum: tuple[float, ...]
    """Share of the variance of every direction, descending; sums to 1."""

    @property
    def verdict(self) -> str:
        """One sentence: what PCM with this k does on this batch."""
        if self.is_identity:
            return (
                f"With k={self.k} PCM does nothing here: the {self.batch} features have rank "
                f"{self.rank}, so the coarse features are the features."
            )
        left = f"{100 * (1 - self.variance_kept):.2g}% of the variance"
        if self.variance_kept > NEARLY_ALL:
            return f"With k={self.k} PCM does next to nothing here: it leaves out {left}."
        return (
            f"With k={self.k} PCM is at work: the coarse features leave out {left} "
            f"(rank {self.rank}, effective rank {self.effective_rank:.1f})."
        )

    def table(self) -> pd.DataFrame:
        """One row a direction: component (from 1), variance share, cumulative share, kept."""
        import pandas as pd

        share = pd.Series(self.spectrum, dtype=float)
        return pd.DataFrame(
            {
                "component": range(1, len(share) + 1),
                "variance": share,
                "cumulative": share.cumsum(),
                "kept": [index < self.k for index in range(len(share))],
            }
        )


@torch.no_grad()
def rank_meter(features_BD: torch.Tensor, k: int = 32) -> RankMeter:
    """Measure what `primary_components(features, k)` would keep of these image features.

    The features are normalised first, as the loss does. Of B features at most B - 1 centred
    directions exist, so with B <= k + 1 it is always the identity. Raises LabError for
    k < 1, an empty batch, NaN.

    >>> features = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    >>> print(rank_meter(features, k=32).verdict)
    With k=32 PCM does nothing here: the 32 features have rank 31, so the coarse features are the \
features.
    """
    check_matrix(features_BD, "rank_meter")
    check_components(k)
    check_finite(features=features_BD)
    batch, dim = features_BD.shape
    centred = _Centred(normalize(features_BD).cpu())
    singular_C = torch.linalg.eigvalsh(centred.gram_CC, UPLO="L").clamp(min=0.0).sqrt()
    noise = centred.noise(singular_C[-1])
    rank = int((singular_C > noise).sum())
    singular_C = torch.where(singular_C > noise, singular_C, 0.0).flip(0)
    share_C = singular_C.square() / singular_C.square().sum().clamp(min=TINY)
    weight_C = singular_C[:rank] / singular_C[:rank].sum()
    return RankMeter(
        batch=batch,
        dimension=dim,
        k=k,
        rank=rank,
        effective_rank=float(torch.exp(-(weight_C * weight_C.log()).sum())) if rank else 0.0,
        variance_kept=1.0 if k >= rank else float(share_C[:k].sum()),
        is_identity=k >= rank,
        spectrum=tuple(share_C.tolist()),
    )
