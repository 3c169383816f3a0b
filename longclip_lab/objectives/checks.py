"""What the objectives refuse: features that no loss should ever see."""

from __future__ import annotations

from numbers import Integral

import torch

from longclip_lab.errors import LabError, NotFiniteError


def check_matrix(features_BD: torch.Tensor, name: str) -> None:
    """Raise LabError unless `features_BD` is a non-empty floating-point matrix."""
    if features_BD.ndim != 2 or 0 in features_BD.shape:
        raise LabError(
            f"{name}: expected a non-empty matrix [batch, dimension], got shape "
            f"{list(features_BD.shape)}; pass one feature a row."
        )
    if not features_BD.is_floating_point():
        raise LabError(f"{name}: expected floating-point features, got {features_BD.dtype}.")


def check_finite(**features: torch.Tensor) -> None:
    """Raise LabError naming the first tensor with a NaN or an infinity.

    One synchronisation with the device for all of them.
    """
    bad = torch.stack([(~torch.isfinite(values)).sum() for values in features.values()]).tolist()
    for name, values, count in zip(features, features.values(), bad, strict=True):
        if count:
            raise NotFiniteError(
                f"{name}: expected finite numbers, got {int(count)} NaN or infinite of "
                f"{values.numel()}; look for a diverged model, a broken image or fp16 overflow."
            )


def check_pairs(first_BD: torch.Tensor, second_BD: torch.Tensor, names: str) -> None:
    """Raise LabError unless both are matrices of the same shape: row i belongs to row i."""
    check_matrix(first_BD, names)
    check_matrix(second_BD, names)
    if first_BD.shape != second_BD.shape:
        raise LabError(
            f"{names}: expected as many rows and columns on both sides, got "
            f"{list(first_BD.shape)} and {list(second_BD.shape)}; row i must belong to row i."
        )


def check_components(k: int) -> None:
    """Raise LabError unless `k` is a positive whole number."""
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise LabError(f"k: expected a whole number of components >= 1, got {k!r}.")


def check_twins(same_GG: torch.Tensor, batch: int) -> None:
    """Raise LabError unless `same_GG` is a square bool mask over `batch` pairs."""
    if same_GG.dtype != torch.bool or same_GG.shape != (batch, batch):
        raise LabError(
            f"same_GG: expected a bool mask [{batch}, {batch}] over the batch of all processes, "
            f"got {same_GG.dtype} {list(same_GG.shape)}; make it with same_text(texts)."
        )
