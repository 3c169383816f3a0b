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
ComponentsOf = Literal["process", "batch"]


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
    faithful: bool = False,
    components_of: ComponentsOf | None = None,
    label_smoothing: float = 0.1,
    same_short_GG: torch.Tensor | None = None,
) -> LossParts:
    """Long-CLIP's loss (ECCV 2024, section 3.3) and its baselines, over the global batch.

    Features need not be normalised. `logit_scale` is the factor itself,
    `model.logit_scale.exp()`. Objectives: "longclip" (primary component matching; "pcm"
    before) matches short captions with the image features' k primary components; "mixed" with the
    image features themselves; "long" ignores short captions (`short_BD` may be None).
    `same_short_GG` marks pairs of one short
    caption, which are no negatives in the short loss (see `contrastive_loss`, `same_identity`).

    faithful=True computes the coarse feature as the official code does: the SVD of the
    normalised image features of this process alone, and no re-normalisation afterwards.
    The default differs in three points, each with its reason:

    - Coarse features are normalised again. CLIP compares by cosine, in the long loss and at
      test time; a coarse feature that lost length in the projection would be a different
      temperature for every image. Without it PCM is nothing but mixing with the short texts
      projected on the components.
    - Principal directions come from the batch of all processes, so that the result does not
      depend on how many there are. `components_of` alone decides this: "batch", or "process".
    - The projector's gradient is exact and stays finite (see `primary_components`).

    Both warn (LabWarning) when the batch cannot support k: of B <= k + 1 images the
    components are the features, exactly, and PCM is mixing by another name.
    Raises LabError for k < 1, an unknown objective or `components_of`, shapes that do not fit,
    NaN features.
    """
    objective = OLD_OBJECTIVES.get(objective, objective)
    _check_choices(objective, components_of)
    check_components(k)
    check_pairs(image_BD, long_BD, "image and long caption features")
    if objective == "long":
        return _long_only(image_BD, long_BD, logit_scale, label_smoothing)
    if short_BD is None:
        raise LabError(f"The objective {objective!r} needs short caption features, got None.")
    check_pairs(image_BD, short_BD, "image and short caption features")

    image_GD, long_GD, short_GD = gather(image_BD), gather(long_BD), gather(short_BD)
    check_finite(image_features=image_GD, long_features=long_GD, short_features=short_GD)
    image_GD = normalize(image_GD)
    coarse_GD, kept = image_GD, image_GD.new_ones(())
    if objective == "longclip":
        coarse_GD = _coarse(image_BD, image_GD, k, faithful, components_of)
        kept = _variance_kept(coarse_GD, image_GD)
        coarse_GD = coarse_GD if faithful else normalize(coarse_GD)
    long = symmetric_cross_entropy(image_GD, normalize(long_GD), logit_scale, label_smoothing)
    short = symmetric_cross_entropy(
        coarse_GD, normalize(short_GD), logit_scale, label_smoothing, same_short_GG
    )
    return LossParts(long + short_weight * short, long, short, kept)


def _check_choices(objective: str, components_of: str | None) -> None:
    if objective not in get_args(Objective):
        raise LabError(f"No objective {objective!r}. {suggest(objective, get_args(Objective))}")
    if components_of is not None and components_of not in get_args(ComponentsOf):
        known = get_args(ComponentsOf)
        raise LabError(f"No components_of {components_of!r}. {suggest(components_of, known)}")


def _long_only(
    image_BD: torch.Tensor,
    long_BD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    label_smoothing: float,
) -> LossParts:
    image_GD, long_GD = gather(image_BD), gather(long_BD)
    check_finite(image_features=image_GD, long_features=long_GD)
    image_GD = normalize(image_GD)
    long = symmetric_cross_entropy(image_GD, normalize(long_GD), logit_scale, label_smoothing)
    return LossParts(long, long, torch.zeros_like(long), image_GD.new_ones(()))


def _coarse(
    image_BD: torch.Tensor,
    image_GD: torch.Tensor,
    k: int,
    faithful: bool,
    components_of: ComponentsOf | None,
) -> torch.Tensor:
    """The coarse features of the global batch, not yet normalised, [G, D]."""
    project = primary_components_svd if faithful else primary_components
    of_process = (components_of or ("process" if faithful else "batch")) == "process"
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
    return torch.where(total > tiny, kept / total.clamp(min=tiny), torch.ones_like(total))
