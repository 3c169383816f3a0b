"""Dots with whiskers in labelled lanes: the figure for comparing a few scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from longclip_lab.evaluation import Interval
from longclip_lab.views.frame import framed
from longclip_lab.views.labels import text_colour

_LANE_PIXELS, _ALONE_PIXELS, _VALUES = 25, 44, 58
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")


class Lane(NamedTuple):
    """One dot: its name at the axis, its score (in the axis's units), its colour and symbol."""

    name: str
    score: Interval
    colour: str
    symbol: str = "circle"


def lanes(
    title: str,
    groups: Mapping[str, Sequence[Lane]],
    x: str,
    span: tuple[float, float],
    *,
    subtitle: str = "",
    value_format: str = ".1f",
) -> go.Figure:
    """Groups of lanes, top to bottom, each with a heading (an empty heading takes no place).

    `span` is the x axis's range. The values stand in a column at the right.
    """
    chart = framed(title, x=x, subtitle=subtitle, at_edge=True)
    ticks: list[tuple[float, str]] = []
    row = 0.0
    for heading, members in groups.items():
        if heading:
            ticks.append((row, f"<b>{heading}</b>"))
            row += 1
        for lane in members:
            ticks.append((row, _coloured(lane)))
            _add_dot(chart, lane, row, value_format)
            row += 1
        row += 0.45 if heading else 0
    chart.update_yaxes(
        tickvals=[at for at, _ in ticks],
        ticktext=[text for _, text in ticks],
        range=[row - (0.7 if any(groups) else 0.4), -0.6],
        showgrid=False,
        ticks="",
        showline=False,
    )
    chart.update_xaxes(range=span)
    pitch = _LANE_PIXELS if any(groups) else _ALONE_PIXELS
    margins = chart.layout.margin.t + chart.layout.margin.b
    chart.update_layout(height=round(margins + pitch * (row + 0.6)), margin_r=_VALUES)
    return chart


def _coloured(lane: Lane) -> str:
    return f'<span style="color:{text_colour(lane.colour)}">{lane.name}</span>'


def _add_dot(chart: go.Figure, lane: Lane, row: float, value_format: str) -> None:
    score = lane.score
    chart.add_scatter(
        x=[score.value],
        y=[row],
        error_x={
            "type": "data",
            "array": [score.high - score.value],
            "arrayminus": [score.value - score.low],
            "color": lane.colour,
            "thickness": 2,
            "width": 4,
        },
        marker={"color": lane.colour, "size": 11, "symbol": lane.symbol},
        mode="markers",
        hovertemplate=f"{score.low:{value_format}} to {score.high:{value_format}}<extra></extra>",
        showlegend=False,
    )
    chart.add_annotation(
        x=1, xref="paper", xanchor="left", xshift=8, y=row, showarrow=False,
        text=f"{score.value:{value_format}}",
        font={"color": text_colour(lane.colour), "size": 13},
    )  # fmt: skip


def scaled(score: Interval, factor: float = 100) -> Interval:
    """The interval in other units, by default percent."""
    return Interval(factor * score.value, factor * score.low, factor * score.high, score.n)
