"""Figures about how far a model reads: the truncation curve and effective length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from longclip_lab.views.frame import framed, plot_height
from longclip_lab.views.labels import end_labels
from longclip_lab.views.lanes import SYMBOLS, Lane, lanes
from longclip_lab.views.theme import COLOURS, add_curve
from longclip_lab.views.wording import compare

if TYPE_CHECKING:
    from longclip_lab.probing import EffectiveLength, TruncationCurve

STYLES = {  # of the caption as written and of the controls: colour, dash, symbol
    "as written": (COLOURS["blue"], "solid", SYMBOLS[0]),
    "positions re-randomised": (COLOURS["purple"], "dot", SYMBOLS[1]),
    "details only": (COLOURS["vermillion"], "dash", SYMBOLS[2]),
    "summary last": (COLOURS["green"], "dashdot", SYMBOLS[3]),
}


def first_reaching(curve: TruncationCurve, variant: str, score: float) -> int | None:
    """The first cut, in tokens, after which the variant scores at least `score`; None if no cut."""
    for cut, reached in zip(curve.cuts, curve.scores(variant), strict=True):
        if reached.value >= score:
            return cut
    return None


def truncation_message(curve: TruncationCurve) -> str:
    """When half of the caption's score is there, and whether that depends on the word order."""
    written = curve.scores("as written")
    half = first_reaching(curve, "as written", written[-1].value / 2)
    message = f"Half of the score is there after {half} tokens"
    if "summary last" not in curve.hits:
        return message
    moved = first_reaching(curve, "summary last", written[-1].value / 2)
    at_half = curve.cuts.index(half)
    if compare(curve.scores("summary last")[at_half], written[at_half]) != "lower":
        return f"{message}, wherever the summary stands"
    if moved is None:
        return f"{message}; with the summary last, not even after {curve.cuts[-1]}"
    return f"{message}; with the summary last, after {moved}"


def truncation_figure(curve: TruncationCurve) -> go.Figure:
    """R@1 against the number of tokens read, with the controls; bands are 95% intervals."""
    chart = framed(
        truncation_message(curve),
        x="content tokens read (the end token stands behind them)",
        y="R@1 (%)",
        subtitle=f"{curve.model}, {curve.num_pairs:,} pictures, mean of both directions; bands: "
        "95% bootstrap intervals",
    )
    variants = [name for name in STYLES if name in curve.hits]
    scores = {name: curve.scores(name) for name in variants}
    for name in variants:
        colour, dash, symbol = STYLES[name]
        value, low, high = (
            [100 * getattr(score, part) for score in scores[name]]
            for part in ("value", "low", "high")
        )
        add_curve(chart, curve.cuts, value, low, high, name, colour, dash=dash)
        chart.data[-1].marker = {"symbol": symbol, "size": 7}
    top = 100 * max(score.high for name in variants for score in scores[name]) * 1.06
    end_labels(
        chart,
        [100 * scores[name][-1].value for name in variants],
        [name.replace("positions ", "positions<br>") for name in variants],
        [STYLES[name][0] for name in variants],
        units_per_pixel=top / plot_height(chart),
        span=(0, top),
    )
    chart.update_layout(hovermode="x unified")
    chart.update_yaxes(range=[0, top])
    chart.update_xaxes(range=[0, curve.cuts[-1] * 1.015])
    return chart


def definitions(effective: EffectiveLength) -> dict[str, str]:
    """What each definition of effective length says, in a few words."""
    return {
        "half": "half of the final score is reached",
        "plateau": "95% of the final score is reached",
        "marginal gain": f"a token brings under {100 * effective.least_gain:g} points",
        "last gain": "the last gain that is certain",
    }


def effective_length_message(effective: EffectiveLength) -> str:
    """Over what range the definitions of effective length spread, for the caption as written."""
    found = [length.value for length in effective.lengths["as written"].values()]
    low, high = min(found), max(found)
    if high <= 1.25 * low:
        return f"About {low:.0f} tokens, whatever “effective length” is taken to mean"
    return f"“Effective length” is {low:.0f} to {high:.0f} tokens: it depends on the definition"


def effective_length_figure(effective: EffectiveLength) -> go.Figure:
    """Each definition's length for the caption as written and the controls, with intervals."""
    variants = [name for name in STYLES if name in effective.lengths]
    groups = {
        words: [
            Lane(name, effective.lengths[name][key], STYLES[name][0], STYLES[name][2])
            for name in variants
        ]
        for key, words in definitions(effective).items()
    }
    last = effective.curve.cuts[-1]
    return lanes(
        effective_length_message(effective),
        groups,
        x="content tokens",
        span=(0, 1.02 * last),
        subtitle=f"{effective.curve.model}, {effective.curve.num_pairs:,} pictures; whiskers: 95% "
        "bootstrap intervals",
        value_format=".0f",
    )
