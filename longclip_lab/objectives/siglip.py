"""The pairwise sigmoid loss of SigLIP.

Shapes: B batch of one process, G global batch, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from longclip_lab.objectives.checks import check_finite, check_pairs, check_twins
from longclip_lab.objectives.contrastive import normalize
from longclip_lab.objectives.gathering import gather


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
    Raises LabError for shapes that do not fit and for NaN features.

    >>> aligned = torch.eye(4)
    >>> round(sigmoid_loss(aligned, aligned, logit_scale=10.0, logit_bias=-10.0).item(), 4)
    0.6933
    """
    check_pairs(image_features_BD, text_features_BD, "image and text features")
    image_GD, text_GD = gather(image_features_BD), gather(text_features_BD)
    check_finite(image_features=image_GD, text_features=text_GD)
    with torch.autocast(image_GD.device.type, enabled=False):
        logits_GG = logit_scale * (normalize(image_GD) @ normalize(text_GD).mT) + logit_bias
        own_GG = torch.eye(len(logits_GG), dtype=torch.bool, device=logits_GG.device)
        losses_GG = -F.logsigmoid(torch.where(own_GG, logits_GG, -logits_GG))
        if same_GG is not None:
            check_twins(same_GG, len(logits_GG))
            losses_GG = losses_GG.masked_fill(same_GG.to(own_GG.device) & ~own_GG, 0)
        return losses_GG.sum() / len(logits_GG)
