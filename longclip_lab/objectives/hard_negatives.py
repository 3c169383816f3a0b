"""HN-CLIP's margin: a negative is the harder the more its text resembles the right one.

Shapes: B batch of one process, G global batch, D embedding.
"""

from __future__ import annotations

import torch

from longclip_lab.objectives.checks import check_finite, check_pairs
from longclip_lab.objectives.contrastive import cross_entropy_both_ways, normalize
from longclip_lab.objectives.gathering import gather, own_rows


def hard_negative_loss(
    image_features_BD: torch.Tensor,
    text_features_BD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    margin: float = 1.0,
    label_smoothing: float = 0.0,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrastive loss with the similarity of the two texts added to every negative, a scalar.

    The logit of image i and text j is scale * (x_i . y_j + margin * y_i . y_j) for i != j and
    scale * x_i . y_i for the pair itself, with no gradient through y_i . y_j (HN-CLIP, "Which
    Negatives Matter? Ask Your Text Encoder", arXiv 2608.18521). So a negative counts as if it
    were nearer than it is, most of all where its caption says nearly the same, which keeps a
    gradient alive when dense captions have made all others easy. `margin=0` is
    `contrastive_loss`. We know the method from its summary; where the scale stands and the
    margin's size are our reading of it.
    Raises LabError for shapes that do not fit and for NaN features.
    """
    check_pairs(image_features_BD, text_features_BD, "image and text features")
    image_GD, text_GD = gather(image_features_BD), gather(text_features_BD)
    check_finite(image_features=image_GD, text_features=text_GD)
    image_GD, text_GD = normalize(image_GD), normalize(text_GD)
    rows = own_rows(image_GD)
    own_B1 = torch.arange(len(image_GD), device=image_GD.device)[rows, None]
    with torch.autocast(image_GD.device.type, enabled=False):
        alike_BG = (text_GD[rows] @ text_GD.mT).detach().scatter(1, own_B1, 0)
        both_BG = [
            logit_scale * (asking_GD[rows] @ answers_GD.mT + margin * alike_BG)
            for asking_GD, answers_GD in ((image_GD, text_GD), (text_GD, image_GD))
        ]
        return cross_entropy_both_ways(*both_BG, label_smoothing, same_GG, rows)
