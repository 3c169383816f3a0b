"""Figures and widgets over what the rooms below return.

Every figure has one message, and its title says it: computed from the numbers that it shows.
"""

from __future__ import annotations

from typing import Any

from longclip_lab.views import widgets
from longclip_lab.views.along import along_html
from longclip_lab.views.answers import counterfactual_figure
from longclip_lab.views.attention import attention_figure, attention_from_figure
from longclip_lab.views.attributions import (
    explanation_figure,
    token_map_figure,
    token_patches_figure,
    token_strip,
)
from longclip_lab.views.comparisons import stretching_figure
from longclip_lab.views.contributions import contribution_figure, rising_figure
from longclip_lab.views.corners import corner_looks_figure, corner_mask_figure
from longclip_lab.views.dispatch import plot
from longclip_lab.views.explorer_figure import explorer_figure
from longclip_lab.views.faithfulness import faithfulness_figure
from longclip_lab.views.features import position_similarity_figure, spectrum_figure
from longclip_lab.views.found import found_html, found_page
from longclip_lab.views.gaps import gaps_figure
from longclip_lab.views.html import Html, caption_html, scene_gallery
from longclip_lab.views.lengths import subcaptions_figure, token_limit_figure
from longclip_lab.views.lies import belief_figure, lie_rate_figure, lie_roc_figure, lies_html
from longclip_lab.views.matches import matches_html
from longclip_lab.views.overshadowing import (
    overshadowing_figure,
    overshadowing_gallery,
    pointing_figure,
)
from longclip_lab.views.patch_maps import patch_maps_figure
from longclip_lab.views.readers import published_figure, readers_figure
from longclip_lab.views.reading import effective_length_figure, truncation_figure
from longclip_lab.views.records import record_figure
from longclip_lab.views.sentence_ranks import sentence_ranks_figure
from longclip_lab.views.theme import COLOURS, CONFIG, PALETTE, add_curve, figure, translucent
from longclip_lab.views.tradeoff import tradeoff_figure

__all__ = [
    "COLOURS",
    "CONFIG",
    "PALETTE",
    "Html",
    "add_curve",
    "along_html",
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


def __getattr__(name: str) -> Any:
    if name in widgets.WIDGETS:
        return getattr(widgets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
