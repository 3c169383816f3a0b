"""Losses as pure functions of features: contrastive, and Long-CLIP's primary components."""

from longclip_lab.objectives.components import primary_components, primary_components_svd
from longclip_lab.objectives.contrastive import contrastive_loss
from longclip_lab.objectives.gathering import gather
from longclip_lab.objectives.longclip import LossParts, longclip_loss
from longclip_lab.objectives.rank import RankMeter, rank_meter
from longclip_lab.objectives.twins import same_identity, same_text

__all__ = [
    "LossParts",
    "RankMeter",
    "contrastive_loss",
    "gather",
    "longclip_loss",
    "primary_components",
    "primary_components_svd",
    "rank_meter",
    "same_identity",
    "same_text",
]
