"""Losses as pure functions of features: CLIP's, Long-CLIP's, LoTLIP's and their baselines'."""

from longclip_lab.objectives.contrastive import (
    contrastive_loss,
    filip_loss,
    hard_negative_loss,
    same_identity,
    same_text,
    sigmoid_loss,
)
from longclip_lab.objectives.gather import gather
from longclip_lab.objectives.longclip import LossParts, longclip_loss
from longclip_lab.objectives.lotlip import LotlipParts, lotlip_loss
from longclip_lab.objectives.pcm import (
    RankMeter,
    primary_components,
    primary_components_svd,
    rank_meter,
)
from longclip_lab.objectives.registry import (
    OBJECTIVES,
    ImageFeatures,
    LossConfig,
    LossInputs,
    ObjectiveEntry,
    TextFeatures,
    objective_loss,
    pulls,
)

__all__ = [
    "OBJECTIVES",
    "ImageFeatures",
    "LossConfig",
    "LossInputs",
    "LossParts",
    "LotlipParts",
    "ObjectiveEntry",
    "RankMeter",
    "TextFeatures",
    "contrastive_loss",
    "filip_loss",
    "gather",
    "hard_negative_loss",
    "longclip_loss",
    "lotlip_loss",
    "objective_loss",
    "primary_components",
    "primary_components_svd",
    "pulls",
    "rank_meter",
    "same_identity",
    "same_text",
    "sigmoid_loss",
]
