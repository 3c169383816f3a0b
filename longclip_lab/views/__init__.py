"""Figures and widgets over what the rooms below return.

Every figure has one message, and its title says it: computed from the numbers that it shows.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from longclip_lab.errors import LabError
from longclip_lab.views import widgets
from longclip_lab.views.attention import (
    attention_figure,
    attention_from_figure,
    corner_looks_figure,
    corner_mask_figure,
)
from longclip_lab.views.counterfactual import (
    belief_figure,
    counterfactual_figure,
    lie_rate_figure,
    lie_roc_figure,
    lies_html,
)
from longclip_lab.views.explorer import explorer_figure
from longclip_lab.views.html import Html, caption_html, matches_html, scene_gallery
from longclip_lab.views.maps import (
    contribution_figure,
    explanation_figure,
    patch_maps_figure,
    rising_figure,
    token_map_figure,
    token_patches_figure,
    token_strip,
)
from longclip_lab.views.models import (
    position_similarity_figure,
    spectrum_figure,
    stretching_figure,
    tradeoff_figure,
)
from longclip_lab.views.overshadowing import (
    faithfulness_figure,
    overshadowing_figure,
    overshadowing_gallery,
    pointing_figure,
)
from longclip_lab.views.reading import (
    effective_length_figure,
    published_figure,
    readers_figure,
    subcaptions_figure,
    token_limit_figure,
    truncation_figure,
)
from longclip_lab.views.search import found_html, found_page, sentence_ranks_figure
from longclip_lab.views.tables import gaps_figure, record_figure
from longclip_lab.views.theme import COLOURS, CONFIG, PALETTE, add_curve, figure, translucent

__all__ = [
    "COLOURS",
    "CONFIG",
    "PALETTE",
    "Html",
    "add_curve",
    "attention_figure",
    "attention_from_figure",
    "belief_figure",
    "caption_html",
    "contribution_figure",
    "corner_looks_figure",
    "corner_mask_figure",
    "counterfactual_figure",
    "effective_length_figure",
    "explanation_figure",
    "explorer_figure",
    "faithfulness_figure",
    "figure",
    "found_html",
    "found_page",
    "gaps_figure",
    "lie_rate_figure",
    "lie_roc_figure",
    "lies_html",
    "matches_html",
    "overshadowing_figure",
    "overshadowing_gallery",
    "patch_maps_figure",
    "plot",
    "pointing_figure",
    "position_similarity_figure",
    "published_figure",
    "readers_figure",
    "record_figure",
    "rising_figure",
    "scene_gallery",
    "sentence_ranks_figure",
    "spectrum_figure",
    "stretching_figure",
    "subcaptions_figure",
    "token_limit_figure",
    "token_map_figure",
    "token_patches_figure",
    "token_strip",
    "tradeoff_figure",
    "translucent",
    "truncation_figure",
]

FIGURES = {
    "TruncationCurve": truncation_figure,
    "EffectiveLength": effective_length_figure,
    "CounterfactualProbe": counterfactual_figure,
    "Faithfulness": faithfulness_figure,
    "Overshadowing": overshadowing_figure,
    "WordPointing": pointing_figure,
    "PatchMap": patch_maps_figure,
    "TokenMap": token_map_figure,
    "TokenPatches": token_patches_figure,
    "Explanation": explanation_figure,
    "AttentionWeights": attention_figure,
    "Contribution": contribution_figure,
    "RisingCurve": rising_figure,
    "SentenceRanks": sentence_ranks_figure,
    "RankMeter": spectrum_figure,
}
"""By the name of a result's class."""


def plot(result: object, **options: object) -> go.Figure:
    """The figure of a result; `options` are those of the figure's own function.

    Raises LabError for a type without a figure.

    >>> plot(3)
    Traceback (most recent call last):
    longclip_lab.errors.LabError: There is no figure of a result of type int.
    """
    for kind in type(result).__mro__:
        if kind.__name__ in FIGURES:
            return FIGURES[kind.__name__](result, **options)
    raise LabError(f"There is no figure of a result of type {type(result).__name__}.")


def __getattr__(name: str) -> Any:
    if name in widgets.WIDGETS:
        return getattr(widgets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
