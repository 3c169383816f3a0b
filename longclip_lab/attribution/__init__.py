"""What a model looks at and what its similarity is made of: methods, and tests of the methods."""

from __future__ import annotations

from longclip_lab.attribution.attention import attention
from longclip_lab.attribution.contribution import Contribution, contributions
from longclip_lab.attribution.corners import CornerLooks, corner_attention, corner_looks
from longclip_lab.attribution.faithfulness import faithfulness
from longclip_lab.attribution.features import PatchFeatures, patch_features, token_features
from longclip_lab.attribution.gradcam import grad_cam_maps
from longclip_lab.attribution.inputs import Pairs, Pictures, as_pairs, as_pictures
from longclip_lab.attribution.integrated_gradients import integrated_gradients
from longclip_lab.attribution.methods import (
    PATCH_METHODS,
    TOKEN_METHODS,
    Method,
    patch_maps,
    patch_method,
    token_maps,
    token_method,
)
from longclip_lab.attribution.occlusion import occluded_patches, occluded_words
from longclip_lab.attribution.overshadowed import WordPointing, word_maps, word_pointing
from longclip_lab.attribution.questions import (
    Questions,
    photographed_things,
    world_things,
    world_words,
)
from longclip_lab.attribution.recording import Recording, record
from longclip_lab.attribution.relevance import relevance
from longclip_lab.attribution.rising import RisingCurve, rising_curve
from longclip_lab.attribution.rollout import rollout
from longclip_lab.attribution.similarity import token_patches, token_patches_of
from longclip_lab.attribution.subtexts import Units, units_of
from longclip_lab.attribution.values import (
    AttentionWeights,
    Explanation,
    PatchMap,
    TokenMap,
    TokenPatches,
    tokens_within,
)
from longclip_lab.attribution.verdicts import CRITERIA, Criterion, Faithfulness, Score

__all__ = [
    "CRITERIA",
    "PATCH_METHODS",
    "TOKEN_METHODS",
    "AttentionWeights",
    "Contribution",
    "CornerLooks",
    "Criterion",
    "Explanation",
    "Faithfulness",
    "Method",
    "Pairs",
    "PatchFeatures",
    "PatchMap",
    "Pictures",
    "Questions",
    "Recording",
    "RisingCurve",
    "Score",
    "TokenMap",
    "TokenPatches",
    "Units",
    "WordPointing",
    "as_pairs",
    "as_pictures",
    "attention",
    "contributions",
    "corner_attention",
    "corner_looks",
    "faithfulness",
    "grad_cam_maps",
    "integrated_gradients",
    "occluded_patches",
    "occluded_words",
    "patch_features",
    "patch_maps",
    "patch_method",
    "photographed_things",
    "record",
    "relevance",
    "rising_curve",
    "rollout",
    "token_features",
    "token_maps",
    "token_method",
    "token_patches",
    "token_patches_of",
    "tokens_within",
    "units_of",
    "word_maps",
    "word_pointing",
    "world_things",
    "world_words",
]
