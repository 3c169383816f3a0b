"""The contrastive loss of CLIP.

Shapes: B batch of one process, G global batch, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from longclip_lab.objectives.checks import check_finite, check_pairs, check_twins
from longclip_lab.objectives.gathering import gather, own_rows, total


def contrastive_loss(
    image_features_BD: torch.Tensor,
    text_features_BD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    label_smoothing: float = 0.0,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE over the batch of all processes (CLIP, Radford et al. 2021, fig. 3).

    Features need not be normalised; row i of one side belongs to row i of the other.
    `logit_scale` is the factor itself, `model.logit_scale.exp()`, as in open_clip.ClipLoss.
    `same_GG` (bool, over the batch of all processes; see `same_text`) marks pairs that share
    their text: a pair's twins are left out of its softmax, on both sides, for they are no
    wrong answers. The diagonal is not read. Label smoothing spreads evenly over the answers
    that remain.
    Returns the mean of the image-to-text and the text-to-image cross-entropy in nats, a
    scalar. Raises LabError for shapes that do not fit and for NaN features.

    >>> aligned = torch.eye(4)
    >>> round(contrastive_loss(aligned, aligned, logit_scale=1.0).item(), 4)
    0.7437
    """
    check_pairs(image_features_BD, text_features_BD, "image and text features")
    image_GD, text_GD = gather(image_features_BD), gather(text_features_BD)
    check_finite(image_features=image_GD, text_features=text_GD)
    return symmetric_cross_entropy(
        normalize(image_GD), normalize(text_GD), logit_scale, label_smoothing, same_GG
    )


def symmetric_cross_entropy(
    image_GD: torch.Tensor,
    text_GD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    label_smoothing: float,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Both cross-entropies of the scaled inner products, averaged; features as they are.

    Of gathered features a process judges its own B rows, and the results are added up.
    """
    rows = own_rows(image_GD)
    with torch.autocast(image_GD.device.type, enabled=False):
        to_text_BG = logit_scale * (image_GD[rows] @ text_GD.mT)
        alone = len(to_text_BG) == len(text_GD)
        to_image_BG = to_text_BG.mT if alone else logit_scale * (text_GD[rows] @ image_GD.mT)
        return cross_entropy_both_ways(to_text_BG, to_image_BG, label_smoothing, same_GG, rows)


def cross_entropy_both_ways(
    to_text_BG: torch.Tensor,
    to_image_BG: torch.Tensor,
    label_smoothing: float,
    same_GG: torch.Tensor | None,
    rows: slice,
) -> torch.Tensor:
    """The mean of two cross-entropies whose right answers are on the diagonal, of all processes.

    Rows of `to_text_BG` are pictures that choose among texts, rows of `to_image_BG` texts that
    choose among pictures: those of `own_rows`. `same_GG`: see `contrastive_loss`.
    """
    batch, answers = to_text_BG.shape
    right_B = torch.arange(answers, device=to_text_BG.device)[rows]
    twins_BG = None
    if same_GG is not None:
        check_twins(same_GG, answers)
        twins_BG = same_GG[rows].to(to_text_BG.device).scatter(1, right_B[:, None], False)
    both = sum(
        _cross_entropy(logits_BG, right_B, label_smoothing, twins_BG)
        for logits_BG in (to_text_BG, to_image_BG)
    )
    return total(both / 2 * (batch / answers))


def _cross_entropy(
    logits_BG: torch.Tensor,
    right_B: torch.Tensor,
    label_smoothing: float,
    left_out_BG: torch.Tensor | None,
) -> torch.Tensor:
    """Mean cross-entropy of the right answers; those of `left_out_BG` are not in the softmax."""
    if left_out_BG is None:
        return F.cross_entropy(logits_BG, right_B, label_smoothing=label_smoothing)
    log_shares_BG = logits_BG.masked_fill(left_out_BG, -torch.inf).log_softmax(dim=1)
    log_right_B = log_shares_BG.gather(1, right_B[:, None])[:, 0]
    if label_smoothing == 0:
        return -log_right_B.mean()
    answers_B = (~left_out_BG).sum(dim=1)
    spread_B = log_shares_BG.masked_fill(left_out_BG, 0).sum(dim=1) / answers_B
    return -((1 - label_smoothing) * log_right_B + label_smoothing * spread_B).mean()


def normalize(features_BD: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in float32 or wider. A row of zeros stays one."""
    wide_BD = features_BD if features_BD.dtype == torch.float64 else features_BD.float()
    return F.normalize(wide_BD, dim=-1)
