"""The training loss of Long-CLIP: long captions, short captions, primary components.

Shapes: B batch of one process, G global batch, D embedding.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from longclip_lab.constants import OLD_OBJECTIVES
from longclip_lab.errors import LabError, LabWarning, suggest
from longclip_lab.objectives.contrastive import (
    check_components,
    check_finite,
    check_pairs,
    normalize,
    symmetric_cross_entropy,
)
from longclip_lab.objectives.gather import gather
from longclip_lab.objectives.pcm import primary_components, primary_components_svd

Objective = Literal["longclip", "mixed", "long"]
PcaScope = Literal["process", "batch"]


@dataclass
class LossParts:
    """The loss and what it is made of; scalars, `total` alone meant for backward()."""

    total: torch.Tensor
    """long + short_weight * short."""
    long: torch.Tensor
    """Contrastive loss of the image features against the long captions, nats."""
    short: torch.Tensor
    """Contrastive loss of the coarse image features against the short captions, nats,
    before its weight. Zero for the objective "long", which has none."""
    variance_kept: torch.Tensor
    """Share of the batch's image feature variance that the coarse features hold, 0 to 1.
    1 means that they are the image features: PCM does nothing."""


def longclip_loss(
    image_BD: torch.Tensor,
    long_BD: torch.Tensor,
    short_BD: torch.Tensor | None,
    logit_scale: torch.Tensor | float,
    objective: Objective = "longclip",
    short_weight: float = 1.0,
    k: int = 32,
    match_official: bool = False,
    pca_scope: PcaScope | None = None,
    label_smoothing: float = 0.1,
    same_short_GG: torch.Tensor | None = None,
) -> LossParts:
    """Long-CLIP's loss (ECCV 2024, section 3.3) and its baselines, over the global batch.

    Features need not be normalised. `logit_scale` is the factor itself, `model.logit_scale.exp()`.
    Objectives: "longclip" (primary component matching; before, "pcm") matches short captions with
    the image features' k primary components; "mixed" with the image features themselves; "long"
    ignores short captions (`short_BD` may be None). `same_short_GG` marks pairs of one short
    caption, which are not negatives in the short loss (see `contrastive_loss`, `same_identity`).

    match_official=True computes the coarse feature as the official code does: the SVD of the
    normalised image features of this process alone, and no re-normalisation afterwards. The
    default differs in three points: coarse features are normalised again, principal directions
    come from the batch of all processes (`pca_scope`, "batch" or "process", decides this alone),
    and the projector's gradient is exact and finite (see `primary_components`).

    Both warn (LabWarning) when the batch cannot support k: of B <= k + 1 images the components
    are the features, exactly, and PCM is "mixed" by another name.
    Raises LabError for k < 1, an unknown objective or `pca_scope`, shapes that do not fit,
    NaN features.
    """
    for name, value, known in (
        ("objective", OLD_OBJECTIVES.get(objective, objective), get_args(Objective)),
        ("pca_scope", pca_scope, (None, *get_args(PcaScope))),
    ):
        if value not in known:
            raise LabError(f"No {name} {value!r}. {suggest(value, [n for n in known if n])}")
    objective = OLD_OBJECTIVES.get(objective, objective)
    check_components(k)
    check_pairs(image_BD, long_BD, "image and long caption features")
    features = {"image_features": gather(image_BD), "long_features": gather(long_BD)}
    if objective != "long":
        if short_BD is None:
            raise LabError(f"The objective {objective!r} needs short caption features, got None.")
        check_pairs(image_BD, short_BD, "image and short caption features")
        features["short_features"] = gather(short_BD)
    check_finite(**features)
    image_GD, long_GD, *short = map(normalize, features.values())

    # The fine-grained alignment: long captions against the whole image feature (section 3.3).
    long = symmetric_cross_entropy(image_GD, long_GD, logit_scale, label_smoothing)
    kept = image_GD.new_ones(())
    if objective == "long":
        return LossParts(long, long, torch.zeros_like(long), kept)

    # The coarse-grained alignment: short captions against what is left of the image feature when
    # only its k primary components are kept, for a summary should not pull on details.
    coarse_GD = image_GD
    if objective == "longclip":
        coarse_GD = _coarse(image_BD, image_GD, k, match_official, pca_scope)
        kept = _variance_kept(coarse_GD, image_GD)
        if not match_official:
            # CLIP compares by cosine, in the long loss and at test time: a coarse feature that
            # lost length in the projection would have a temperature of its own in every image.
            coarse_GD = normalize(coarse_GD)
    short_loss = symmetric_cross_entropy(
        coarse_GD, *short, logit_scale, label_smoothing, same_short_GG
    )
    return LossParts(long + short_weight * short_loss, long, short_loss, kept)


def _coarse(
    image_BD: torch.Tensor,
    image_GD: torch.Tensor,
    k: int,
    match_official: bool,
    pca_scope: PcaScope | None,
) -> torch.Tensor:
    """The coarse features of the global batch, not yet normalised, [G, D]."""
    project = primary_components_svd if match_official else primary_components
    # Over the whole batch the result does not depend on the number of processes. The official
    # code decomposes each GPU's images alone.
    of_process = (pca_scope or ("process" if match_official else "batch")) == "process"
    batch = len(image_BD) if of_process else len(image_GD)
    if batch <= k + 1:
        scope = "of this process" if of_process else "of all processes"
        warnings.warn(
            f"PCM with k={k} does nothing on a batch {scope} of {batch}: {batch} centred "
            f"features have at most {batch - 1} directions, so the coarse features are the "
            f"image features. Use at least {k + 2} images or a smaller k.",
            LabWarning,
            stacklevel=3,
        )
    if of_process:
        return gather(project(normalize(image_BD), k))
    return project(image_GD, k)


@torch.no_grad()
def _variance_kept(coarse_GD: torch.Tensor, image_GD: torch.Tensor) -> torch.Tensor:
    # The projection is orthogonal: what it keeps of the variance is the ratio of the norms.
    total = (image_GD - image_GD.mean(dim=0)).square().sum()
    kept = (coarse_GD - coarse_GD.mean(dim=0)).square().sum()
    tiny = torch.finfo(total.dtype).tiny
    # Identical images have no variance to lose.
    return torch.where(total > tiny, kept / total.clamp(min=tiny), torch.ones_like(total))
