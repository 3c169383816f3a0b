"""The training loss of LoTLIP: one positive per text feature, CLS and every corner.

Shapes: B batch of one process, G global batch, C text features of one text (CLS first, then m
corners), D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from longclip_lab.errors import LabError, suggest
from longclip_lab.objectives.contrastive import (
    check_finite,
    check_pairs,
    normalize,
    symmetric_cross_entropy,
)
from longclip_lab.objectives.gather import gather
from longclip_lab.objectives.longclip import LossParts

Reduction = Literal["sum", "mean"]


@dataclass
class LotlipParts(LossParts):
    """As LossParts, and what each text feature of the long captions adds.

    `long` and `short` are the parts of `total` as they stand in it, after the reduction.
    """

    each_C: torch.Tensor
    """Contrastive loss of the image features against CLS and each corner, nats, not reduced."""


def lotlip_loss(
    image_BD: torch.Tensor,
    long_BCD: torch.Tensor,
    short_BD: torch.Tensor | None,
    logit_scale: torch.Tensor | float,
    reduction: Reduction = "sum",
    short_weight: float = 1.0,
    long_weight: float = 1.0,
    label_smoothing: float = 0.0,
    same_long_GG: torch.Tensor | None = None,
    same_short_GG: torch.Tensor | None = None,
) -> LotlipParts:
    """LoTLIP's loss (NeurIPS 2024, section 4.3, equations 1 to 6), over the global batch.

    `long_BCD` holds CLS and the m corners of one long text an image: the sub-captions that were
    drawn for it are joined to one text, they are not texts of their own. `short_BD` is the raw
    caption's CLS alone. All of them are matched with the same image feature, each among its own
    kind: corner k of a text competes with corner k of the other texts. Features need not be
    normalised; `logit_scale` is the factor itself.

    reduction="sum" adds the losses of the m + 2 text features, as the paper does: with m corners
    the long text weighs m + 1 times the short one. "mean" divides by their number, as the released
    code does. Each of them is the mean over pairs and over both directions; the paper's equations
    add these up too, which multiplies everything by 2G and is nothing to AdamW.

    `long_weight` and `short_weight` stand before the two parts. With C = 1, "sum" and long_weight
    m + 1 this is the baseline that any gain of corners must beat: as much long loss on CLS alone.
    `short_BD` may be None. `same_long_GG` and `same_short_GG`: see `contrastive_loss`.
    `variance_kept` is 1: nothing is projected.
    Raises LabError for an unknown reduction, shapes that do not fit, NaN features.

    >>> eye = torch.eye(4)
    >>> parts = lotlip_loss(eye, torch.stack([eye, eye, eye], dim=1), eye, logit_scale=1.0)
    >>> [round(part.item(), 4) for part in (parts.total, parts.long, parts.short)]
    [2.9747, 2.231, 0.7437]
    """
    if reduction not in get_args(Reduction):
        known = get_args(Reduction)
        raise LabError(f"No reduction {reduction!r}. {suggest(reduction, known)}")
    if long_BCD.ndim != 3 or long_BCD.shape[1] == 0:
        raise LabError(
            "long_BCD: expected [batch, CLS and corners, dimension], got shape "
            f"{list(long_BCD.shape)}; without corners add the axis with [:, None]."
        )
    check_pairs(image_BD, long_BCD[:, 0], "image and long caption features")
    if short_BD is not None:
        check_pairs(image_BD, short_BD, "image and short caption features")
    image_GD = gather(image_BD)
    # One collective for all text features of a text.
    long_GCD = gather(long_BCD.flatten(1)).unflatten(1, long_BCD.shape[1:])
    check_finite(image_features=image_GD, long_features=long_GCD)
    image_GD, long_GCD = normalize(image_GD), normalize(long_GCD)
    # Equations 4 to 6, both directions, term by term: the global feature t_g (CLS) and each corner
    # t_ck against the same image feature v.
    each_C = torch.stack([
        symmetric_cross_entropy(image_GD, text_GD, logit_scale, label_smoothing, same_long_GG)
        for text_GD in long_GCD.unbind(dim=1)
    ])  # fmt: skip
    short, count = torch.zeros_like(each_C[0]), len(each_C)
    if short_BD is not None:
        # Equations 1 to 3: the raw caption against the image feature.
        short_GD = gather(short_BD)
        check_finite(short_features=short_GD)
        short = symmetric_cross_entropy(
            image_GD, normalize(short_GD), logit_scale, label_smoothing, same_short_GG
        )
        count += 1
    # The paper adds m + 2 losses; its code takes their mean, a learning rate m + 2 times smaller.
    share = 1 / count if reduction == "mean" else 1.0
    long, short = share * long_weight * each_C.sum(), share * short_weight * short
    return LotlipParts(long + short, long, short, image_GD.new_ones(()), each_C)
