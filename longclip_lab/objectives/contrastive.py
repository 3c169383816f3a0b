"""The contrastive loss of CLIP.

Shapes: B batch of one process, G global batch, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from longclip_lab.objectives.checks import check_finite, check_pairs, check_twins
from longclip_lab.objectives.gathering import gather


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
    """Both cross-entropies of the scaled inner products, averaged; features as they are."""
    with torch.autocast(image_GD.device.type, enabled=False):
        logits_GG = logit_scale * (image_GD @ text_GD.mT)
        return cross_entropy_both_ways(logits_GG, logits_GG.mT, label_smoothing, same_GG)


def cross_entropy_both_ways(
    to_text_GG: torch.Tensor,
    to_image_GG: torch.Tensor,
    label_smoothing: float,
    same_GG: torch.Tensor | None,
) -> torch.Tensor:
    """The mean of two cross-entropies whose right answers are on the diagonal.

    Rows of `to_text_GG` are pictures that choose among texts, rows of `to_image_GG` texts that
    choose among pictures. `same_GG`: see `contrastive_loss`.
    """
    if same_GG is None:
        targets_G = torch.arange(len(to_text_GG), device=to_text_GG.device)
        to_text = F.cross_entropy(to_text_GG, targets_G, label_smoothing=label_smoothing)
        to_image = F.cross_entropy(to_image_GG, targets_G, label_smoothing=label_smoothing)
    else:
        check_twins(same_GG, len(to_text_GG))
        twins_GG = same_GG.to(to_text_GG.device).clone().fill_diagonal_(False)
        to_text = _cross_entropy_without(twins_GG, to_text_GG, label_smoothing)
        to_image = _cross_entropy_without(twins_GG.mT, to_image_GG, label_smoothing)
    return (to_text + to_image) / 2


def _cross_entropy_without(
    left_out_GG: torch.Tensor, logits_GG: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Mean cross-entropy of the diagonal; answers of `left_out_GG` are not in the softmax."""
    log_shares_GG = logits_GG.masked_fill(left_out_GG, -torch.inf).log_softmax(dim=1)
    right_G = log_shares_GG.diagonal()
    if label_smoothing == 0:
        return -right_G.mean()
    answers_G = (~left_out_GG).sum(dim=1)
    spread_G = log_shares_GG.masked_fill(left_out_GG, 0).sum(dim=1) / answers_G
    return -((1 - label_smoothing) * right_G + label_smoothing * spread_G).mean()


def normalize(features_BD: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in float32 or wider. A row of zeros stays one."""
    wide_BD = features_BD if features_BD.dtype == torch.float64 else features_BD.float()
    return F.normalize(wide_BD, dim=-1)
