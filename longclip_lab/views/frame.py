"""The frame of every figure: the message as title, what was measured as subtitle."""

from __future__ import annotations

import textwrap

import plotly.graph_objects as go

from longclip_lab.views.theme import figure

GREY = "#595959"
_WIDEST = 66  # characters of a title's line
_SUBTITLE, _BOTTOM = 26, 60  # pixels


def framed(
    title: str,
    x: str = "",
    y: str = "",
    *,
    subtitle: str = "",
    height: int = 440,
    at_edge: bool = False,
) -> go.Figure:
    """An empty figure without a legend: curves and dots are named where they are.

    The title's lines are about equally long. `at_edge` begins them at the figure's left edge, for
    figures with long names at the y axis.
    """
    chart = figure(balanced(title), x=x, y=y, height=height)
    room = _SUBTITLE if subtitle else 0
    chart.update_layout(
        showlegend=False,
        margin={"t": chart.layout.margin.t + room, "b": _BOTTOM},
        title={
            "pad": {"b": chart.layout.title.pad.b + room},
            "subtitle": {"text": subtitle, "font": {"size": 13, "color": GREY}},
        },
    )
    if at_edge:
        chart.update_layout(title={"xref": "container", "x": 0.012})
    return chart


def balanced(text: str) -> str:
    """The text in as few lines as its width allows, about equally long, joined by `<br>`.

    >>> balanced("One two three four five six seven eight nine ten eleven twelve thirteen.")
    'One two three four five six seven<br>eight nine ten eleven twelve thirteen.'
    """
    lines = textwrap.wrap(text, _WIDEST, break_long_words=False)
    for width in range(max(1, len(text) // max(1, len(lines))), _WIDEST):
        narrower = textwrap.wrap(text, width, break_long_words=False)
        if len(narrower) <= len(lines):
            return "<br>".join(narrower)
    return "<br>".join(lines)


def plot_height(chart: go.Figure) -> float:
    """Pixels between the upper and the lower margin."""
    return chart.layout.height - chart.layout.margin.t - chart.layout.margin.b
