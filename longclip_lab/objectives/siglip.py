"""The pairwise sigmoid loss of SigLIP.

Shapes: B batch of one process, G global batch, R pictures judged at once, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from longclip_lab.objectives.checks import check_finite, check_pairs, check_twins
from longclip_lab.objectives.contrastive import normalize
from longclip_lab.objectives.gathering import gather, own_rows, total

JUDGED_AT_ONCE = 2**24
"""Pairs in a chunk: 64 MiB of float32 logits."""


def sigmoid_loss(
    image_features_BD: torch.Tensor,
    text_features_BD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Every pair judged by itself (SigLIP, Zhai et al. 2023, section 3.2), as a scalar in nats.

    - 1/G times the sum over images i and texts j of log sigmoid(z_ij (scale x_i . y_j + bias)),
    z_ij = 1 for pairs that belong together and -1 for all others. Scale and bias are trained; the
    paper starts them at 10 and -10, so that the many negatives do not swamp the start.
    Features need not be normalised. `same_GG`: twins count neither as right nor as wrong.

    A process judges its own pictures against all texts, in chunks that are computed again for the
    gradient: there is never a table of G x G logits (section 3.3, with a gather of the texts
    instead of the paper's ring).
    Raises LabError for shapes that do not fit and for NaN features.

    >>> aligned = torch.eye(4)
    >>> round(sigmoid_loss(aligned, aligned, logit_scale=10.0, logit_bias=-10.0).item(), 4)
    0.6933
    """
    check_pairs(image_features_BD, text_features_BD, "image and text features")
    text_GD = gather(text_features_BD)
    # All processes must come to the same verdict. A row with a NaN has no finite sum.
    sums_G = gather(image_features_BD.detach().float().sum(dim=1))
    check_finite(image_features=sums_G, text_features=text_GD)
    image_BD, text_GD = normalize(image_features_BD), normalize(text_GD)
    mine_B = torch.arange(len(text_GD), device=text_GD.device)[own_rows(text_GD)]
    twins_BG = None
    if same_GG is not None:
        check_twins(same_GG, len(text_GD))
        twins_BG = same_GG[own_rows(text_GD)].to(text_GD.device)
    size = max(1, JUDGED_AT_ONCE // len(text_GD))
    share = image_BD.new_zeros(())
    for start in range(0, len(image_BD), size):
        rows = slice(start, start + size)
        twins_RG = None if twins_BG is None else twins_BG[rows]
        chunk = (image_BD[rows], text_GD, mine_B[rows], logit_scale, logit_bias, twins_RG)
        if size >= len(image_BD):
            share = share + _judged(*chunk)
        else:
            share = share + checkpoint(_judged, *chunk, use_reentrant=False)
    return total(share / len(text_GD))


def _judged(
    image_RD: torch.Tensor,
    text_GD: torch.Tensor,
    own_R: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    twins_RG: torch.Tensor | None,
) -> torch.Tensor:
    """The sum over pairs of R pictures and all texts; `own_R` are the right ones."""
    with torch.autocast(image_RD.device.type, enabled=False):
        logits_RG = logit_scale * (image_RD @ text_GD.mT) + logit_bias
        right_RG = torch.zeros_like(logits_RG, dtype=torch.bool).scatter(1, own_R[:, None], True)
        losses_RG = -F.logsigmoid(torch.where(right_RG, logits_RG, -logits_RG))
        if twins_RG is not None:
            losses_RG = losses_RG.masked_fill(twins_RG & ~right_RG, 0)
        return losses_RG.sum()
