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
    from longclip_lab.views import (
        answers,
        attention,
        attributions,
        contributions,
        faithfulness,
        features,
        overshadowing,
        patch_maps,
        reading,
        sentence_ranks,
    )

    figures = {
        probing.TruncationCurve: reading.truncation_figure,
        probing.EffectiveLength: reading.effective_length_figure,
        probing.CounterfactualProbe: answers.counterfactual_figure,
        attribution.Faithfulness: faithfulness.faithfulness_figure,
        probing.Overshadowing: overshadowing.overshadowing_figure,
        attribution.WordPointing: overshadowing.pointing_figure,
        attribution.PatchMap: patch_maps.patch_maps_figure,
        attribution.TokenMap: attributions.token_map_figure,
        attribution.TokenPatches: attributions.token_patches_figure,
        attribution.Explanation: attributions.explanation_figure,
        attribution.AttentionWeights: attention.attention_figure,
        attribution.Contribution: contributions.contribution_figure,
        attribution.RisingCurve: contributions.rising_figure,
        search.SentenceRanks: sentence_ranks.sentence_ranks_figure,
        RankMeter: features.spectrum_figure,
    }
    for kind, draw in figures.items():
        if isinstance(result, kind):
            return draw(result, **options)
    raise LabError(f"There is no figure of a result of type {type(result).__name__}.")
