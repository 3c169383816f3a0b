"""Losses as pure functions of features: CLIP's, Long-CLIP's, LoTLIP's and their baselines'."""

from longclip_lab.objectives.components import primary_components, primary_components_svd
from longclip_lab.objectives.contrastive import contrastive_loss
from longclip_lab.objectives.filip import filip_loss
from longclip_lab.objectives.gathering import gather
from longclip_lab.objectives.hard_negatives import hard_negative_loss
from longclip_lab.objectives.longclip import LossParts, longclip_loss
from longclip_lab.objectives.lotlip import LotlipParts, lotlip_loss
from longclip_lab.objectives.pulls import pulls
from longclip_lab.objectives.rank import RankMeter, rank_meter
from longclip_lab.objectives.registry import (
    OBJECTIVES,
    ImageSide,
    ObjectiveEntry,
    Settings,
    Step,
    TextSide,
    objective_loss,
)
from longclip_lab.objectives.siglip import sigmoid_loss
from longclip_lab.objectives.twins import same_identity, same_text

__all__ = [
    "OBJECTIVES",
    "ImageSide",
    "LossParts",
    "LotlipParts",
    "ObjectiveEntry",
    "RankMeter",
    "Settings",
    "Step",
    "TextSide",
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
