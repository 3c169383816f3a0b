"""The token-wise late interaction of FILIP.

Shapes: B batch of one process, G global batch, R rows worked on at once, P image tokens, T text
tokens, D embedding.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from longclip_lab.errors import LabError
from longclip_lab.objectives.checks import check_finite
from longclip_lab.objectives.contrastive import cross_entropy_both_ways, normalize
from longclip_lab.objectives.gathering import gather, own_rows, pad_to_longest

ROWS_AT_ONCE = 64


def filip_loss(
    image_tokens_BPD: torch.Tensor,
    text_tokens_BTD: torch.Tensor,
    text_mask_BT: torch.Tensor,
    logit_scale: torch.Tensor | float,
    label_smoothing: float = 0.0,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrastive loss over token-wise similarities (FILIP, Yao et al. 2022, section 3.1).

    Image to text: every image token is compared with its most similar text token, and the mean
    over image tokens is the similarity of picture and text (equations 3 and 4); text to image:
    the other way round, over the tokens of the text that `text_mask_BT` (bool) marks. The result
    is the mean of both cross-entropies, a scalar in nats. The paper's reduction of tokens to the
    top 25% before they are gathered is a saving that we leave out.

    Tokens need not be normalised. T may differ between processes. Only R rows of the
    [G, G, P, T] similarities exist at a time.
    Raises LabError for shapes that do not fit, a text without tokens, NaN features.
    """
    _check(image_tokens_BPD, text_tokens_BTD, text_mask_BT)
    image_GPD = normalize(gather(image_tokens_BPD))
    text_GTD = normalize(gather(pad_to_longest(text_tokens_BTD)))
    # Not every backend gathers bools.
    mask_GT = gather(pad_to_longest(text_mask_BT.to(torch.uint8))).bool()
    check_finite(image_tokens=image_GPD, text_tokens=text_GTD)
    with torch.autocast(image_GPD.device.type, enabled=False):
        rows = [
            checkpoint(late_interaction, part_RPD, text_GTD, mask_GT, use_reentrant=False)
            for part_RPD in image_GPD.split(ROWS_AT_ONCE)
        ]
        of_image_GG, of_text_GG = (torch.cat(part) for part in zip(*rows, strict=True))
        own = own_rows(image_GPD)
        to_text_BG, to_image_BG = of_image_GG[own], of_text_GG.mT[own]
        return cross_entropy_both_ways(
            logit_scale * to_text_BG, logit_scale * to_image_BG, label_smoothing, same_GG, own
        )


def late_interaction(
    image_RPD: torch.Tensor, text_GTD: torch.Tensor, mask_GT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How pictures look to texts and texts to pictures, both [R, G]; tokens of length 1.

    First the mean over image tokens of their best text token, then the mean over text tokens of
    their best image token.
    """
    similarity_RGPT = torch.einsum("rpd,gtd->rgpt", image_RPD, text_GTD)
    shown = similarity_RGPT.masked_fill(~mask_GT[None, :, None, :], -torch.inf)
    of_image_RG = shown.amax(dim=3).mean(dim=2)
    best_RGT = similarity_RGPT.amax(dim=2).masked_fill(~mask_GT, 0)
    return of_image_RG, best_RGT.sum(dim=2) / mask_GT.sum(dim=1)


def _check(image_BPD: torch.Tensor, text_BTD: torch.Tensor, mask_BT: torch.Tensor) -> None:
    fits = (
        image_BPD.ndim == text_BTD.ndim == 3
        and 0 not in (*image_BPD.shape, *text_BTD.shape)
        and image_BPD.shape[::2] == text_BTD.shape[::2]
        and mask_BT.shape == text_BTD.shape[:2]
    )
    if not fits or mask_BT.dtype != torch.bool:
        raise LabError(
            "FILIP compares image tokens [B, P, D] with text tokens [B, T, D] under a bool mask "
            f"[B, T]; got {list(image_BPD.shape)}, {list(text_BTD.shape)} and {mask_BT.dtype} "
            f"{list(mask_BT.shape)}."
        )
    empty_B = ~mask_BT.any(dim=1)
    if empty_B.any():
        raise LabError(f"Text {int(empty_B.nonzero()[0])} of the batch has no tokens to compare.")
