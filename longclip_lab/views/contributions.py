"""What each sentence does for the similarity, and whether the similarity rises with them.

n units (sentences or sub-captions) of a text, k units so far.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape

import numpy as np
import plotly.graph_objects as go

from longclip_lab.attribution.contribution import Contribution
from longclip_lab.attribution.rising import RisingCurve
from longclip_lab.errors import LabError
from longclip_lab.text import split_sentences, split_subcaptions
from longclip_lab.views.frame import GREY, framed
from longclip_lab.views.labels import end_labels
from longclip_lab.views.theme import COLOURS, PALETTE, add_curve
from longclip_lab.views.wording import CHANCE, listed, percent

_ROW = 44  # pixels of a sentence
_CHARACTERS = 38  # of a line of a sentence at the axis
_SPLIT = 0.6  # of the width, between contributions and curve
_TWO_SIDED = 1.96  # standard errors of a 95% interval
_KINDS = {
    "leave_one_out": ("leave one out", "square-open", "vermillion", -0.22),
    "add_one": ("add one", "diamond-open", "green", 0.22),
    "shapley": ("Shapley", "circle", "blue", 0.0),
}


def contribution_figure(found: Contribution) -> go.Figure:
    """A row for each sentence: left its contributions, right the similarity with it and all before.

    Whiskers are 95% intervals of sampled Shapley values. Sentences that the model never read have
    a row without dots.
    """
    count, unread = len(found.units), _unread_texts(found)
    chart = framed(
        contribution_message(found),
        subtitle=escape(f"{found.model}; similarity with the empty text "
                        f"{found.empty_similarity:.2f}, with all {found.similarity:.2f}"),
        at_edge=True,
    )  # fmt: skip
    for name, (label, symbol, colour, shift) in _KINDS.items():
        errors = _TWO_SIDED * found.errors if name == "shapley" else np.zeros(count)
        chart.add_scatter(
            x=getattr(found, name).round(6), y=(np.arange(count) + shift).tolist(), name=label,
            mode="markers", showlegend=True,
            marker={"symbol": symbol, "size": 11, "color": COLOURS[colour], "line": {"width": 2.5}},
            error_x={"array": errors.round(6), "visible": bool(errors.any()), "thickness": 2},
            hovertemplate=f"{label} %{{x:+.3f}}<extra></extra>",
        )  # fmt: skip
    chart.add_scatter(
        x=found.curve.round(6), y=[*range(-1, count)], xaxis="x2", mode="lines+markers",
        line={"color": COLOURS["black"]}, showlegend=False,
        hovertemplate="similarity %{x:.3f}<extra></extra>",
    )  # fmt: skip
    names = ["<i>(no text)</i>", *map(_wrapped, found.units.texts)]
    names += [
        f'<span style="color:#767b81">{_wrapped(text, lines=1)}<br>never read</span>'
        for text in unread
    ]
    chart.add_vline(x=0, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    chart.update_layout(
        height=chart.layout.margin.t + _ROW * len(names) + 110, margin_b=110, showlegend=True,
        legend={"y": 0, "yref": "container", "yanchor": "bottom"},
        xaxis={"domain": [0, _SPLIT], "title": {"text": "contribution (cosine)"}},
        xaxis2={"domain": [_SPLIT + 0.04, 1], "anchor": "y",
                "title": {"text": "similarity so far"}},
        yaxis={"tickvals": list(range(-1, len(names) - 1)), "ticktext": names, "ticks": "",
               "range": [len(names) - 1.5, -1.6], "showline": False},
    )  # fmt: skip
    return chart


def contribution_message(found: Contribution) -> str:
    """Which sentence brings most, and how many of the later ones raise the similarity."""
    best = int(found.shapley.argmax())
    told = f"Sentence {best + 1} of {len(found.units)} brings most: {found.shapley[best]:+.2f}"
    steps = np.diff(found.curve[1:])
    if len(steps):
        told += (
            f"; {int((steps > 0).sum())} of the {len(steps)} after the first raise the similarity"
        )
    return told + (f"; {found.unread} are never read" if found.unread else "")


def rising_figure(result: RisingCurve | Mapping[str, RisingCurve]) -> go.Figure:
    """The mean similarity after k sentences less that after the first, with 95% bands.

    Raises LabError for no result.
    """
    results = dict(result) if isinstance(result, Mapping) else {result.model: result}
    if not results:
        raise LabError("expected at least one rising curve, got none.")
    first = next(iter(results.values()))
    chart = framed(
        rising_message(results),
        x=f"{first.units} of the caption so far",
        y="similarity, less that after the first (cosine)",
        subtitle=f"{len(first):,} pairs; bands: 95%; each point over the pairs that have so many",
    )
    gains = {label: one.gains for label, one in results.items()}
    for colour, (label, points) in zip(PALETTE, gains.items(), strict=False):
        value, low, high = (
            [getattr(point, name) for point in points] for name in ("value", "low", "high")
        )
        add_curve(chart, range(1, len(points) + 1), value, low, high, label, colour)
    chart.add_hline(y=0, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    bounds = [b for points in gains.values() for p in points for b in (p.low, p.high)]
    span = (min(bounds) - 0.01, max(bounds) + 0.01)
    pixels = chart.layout.height - chart.layout.margin.t - chart.layout.margin.b
    end_labels(
        chart, [points[-1].value for points in gains.values()], list(gains),
        list(PALETTE[: len(gains)]), (span[1] - span[0]) / pixels, span,
    )  # fmt: skip
    chart.update_yaxes(range=span)
    return chart


def rising_message(results: Mapping[str, RisingCurve]) -> str:
    """The share of steps that rise, and whether that is more than a coin would."""
    told = []
    for label, one in results.items():
        against = (
            "more than half" if one.steps.low > CHANCE
            else "less than half" if one.steps.high < CHANCE
            else "no more than half"
        )  # fmt: skip
        told.append(f"{label} {percent(one.steps.value)} ({against})")
    return f"Added sentences that raise the similarity: {listed(told)}"


def _unread_texts(found: Contribution) -> list[str]:
    """The sentences behind the model's context."""
    if not found.unread:
        return []
    if found.units.kind == "sentences":
        parts = [found.text[slice(*span)] for span in split_sentences(found.text)]
    else:
        parts = split_subcaptions(found.text)
    return parts[-found.unread :]


def _wrapped(text: str, lines: int = 2) -> str:
    parts = textwrap.wrap(text, _CHARACTERS, max_lines=lines, placeholder=" …")
    return "<br>".join(map(escape, parts))
