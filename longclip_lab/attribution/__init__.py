"""What a model looks at and what its similarity is made of: methods, and tests of the methods."""

from __future__ import annotations

from longclip_lab.attribution.inputs import Pairs, as_pairs
from longclip_lab.attribution.methods import (
    PATCH_METHODS,
    TOKEN_METHODS,
    Method,
    patch_maps,
    patch_method,
    token_maps,
    token_method,
)
from longclip_lab.attribution.values import (
    AttentionWeights,
    Explanation,
    PatchMap,
    TokenMap,
    TokenPatches,
    tokens_within,
)

__all__ = [
    "PATCH_METHODS",
    "TOKEN_METHODS",
    "AttentionWeights",
    "Explanation",
    "Method",
    "Pairs",
    "PatchMap",
    "TokenMap",
    "TokenPatches",
    "as_pairs",
    "patch_maps",
    "patch_method",
    "token_maps",
    "token_method",
    "tokens_within",
]
