"""The rank meter: can this batch support k primary components, and do they leave anything out?

Shapes: B batch, D embedding, C = min(B, D) principal directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from longclip_lab.objectives.checks import check_components, check_finite, check_matrix
from longclip_lab.objectives.components import singular_values
from longclip_lab.objectives.contrastive import normalize
from longclip_lab.plotting import Plottable

if TYPE_CHECKING:
    import pandas as pd

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
    singular_C, noise = singular_values(normalize(features_BD).cpu())
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
