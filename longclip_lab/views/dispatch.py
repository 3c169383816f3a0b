"""`plot`: the figure of a result, found by the result's type."""

from __future__ import annotations

import plotly.graph_objects as go

from longclip_lab.errors import LabError


def plot(result: object, **options: object) -> go.Figure:
    """The figure of a result; `options` are those of the figure's own function.

    Raises LabError for a type without a figure.

    >>> plot(3)
    Traceback (most recent call last):
    longclip_lab.errors.LabError: There is no figure of a result of type int.
    """
    # here, so that the theme alone does not need torch
    from longclip_lab import attribution, probing, search
    from longclip_lab.objectives import RankMeter
    from longclip_lab.views.attention import attention_figure
    from longclip_lab.views.counterfactual import counterfactual_figure
    from longclip_lab.views.maps import (
        contribution_figure,
        explanation_figure,
        patch_maps_figure,
        rising_figure,
        token_map_figure,
        token_patches_figure,
    )
    from longclip_lab.views.models import spectrum_figure
    from longclip_lab.views.overshadowing import (
        faithfulness_figure,
        overshadowing_figure,
        pointing_figure,
    )
    from longclip_lab.views.reading import effective_length_figure, truncation_figure
    from longclip_lab.views.search import sentence_ranks_figure

    figures = {
        probing.TruncationCurve: truncation_figure,
        probing.EffectiveLength: effective_length_figure,
        probing.CounterfactualProbe: counterfactual_figure,
        attribution.Faithfulness: faithfulness_figure,
        probing.Overshadowing: overshadowing_figure,
        attribution.WordPointing: pointing_figure,
        attribution.PatchMap: patch_maps_figure,
        attribution.TokenMap: token_map_figure,
        attribution.TokenPatches: token_patches_figure,
        attribution.Explanation: explanation_figure,
        attribution.AttentionWeights: attention_figure,
        attribution.Contribution: contribution_figure,
        attribution.RisingCurve: rising_figure,
        search.SentenceRanks: sentence_ranks_figure,
        RankMeter: spectrum_figure,
    }
    for kind, draw in figures.items():
        if isinstance(result, kind):
            return draw(result, **options)
    raise LabError(f"There is no figure of a result of type {type(result).__name__}.")
