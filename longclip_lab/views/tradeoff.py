"""Long against short captions: where fine-tuned models lie between the two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import plotly.graph_objects as go

from longclip_lab.evaluation import Interval
from longclip_lab.views.comparisons import Scored, long_score, short_score
from longclip_lab.views.frame import GREY, framed, plot_height
from longclip_lab.views.labels import Box, beside_points, text_colour
from longclip_lab.views.lanes import scaled
from longclip_lab.views.theme import COLOURS
from longclip_lab.views.wording import compare, listed, percent

_WIDTH, _LEFT, _RIGHT = 700, 70, 30
_STEPS = 200
Place = Literal["above", "on", "below"]
STYLES = {  # colour and symbol by what a model was trained on
    "longclip": (COLOURS["vermillion"], "diamond-open"),
    "mixed": (COLOURS["blue"], "circle"),
    "long": (COLOURS["blue"], "circle"),
    "": (GREY, "circle-open"),
}


def short_weight_sweep(rows: Sequence[Scored]) -> list[Scored]:
    """The models fine-tuned with the full image feature, by the weight of their short loss."""
    swept = [row for row in rows if row.recipe.get("objective") in ("long", "mixed")]
    return sorted(swept, key=_short_weight)


def _short_weight(row: Scored) -> float:
    return 0.0 if row.recipe["objective"] == "long" else row.recipe["short_weight"]


def against_sweep(row: Scored, sweep: Sequence[Scored]) -> Place:
    """Where a model lies to the curve through `sweep` in the plane of short and long R@1.

    "on": at some point of the curve (scores and intervals interpolated between neighbours) both
    intervals overlap. Otherwise "below" if some point is better in both, else "above".
    """
    curve = _interpolated(sweep)
    short, long = short_score(row), long_score(row)
    if any(compare(short, s) == compare(long, t) == "no difference seen" for s, t in curve):
        return "on"
    beaten = any(s.value >= short.value and t.value >= long.value for s, t in curve)
    return "below" if beaten else "above"


def _interpolated(sweep: Sequence[Scored]) -> list[tuple[Interval, Interval]]:
    scores = [(short_score(row), long_score(row)) for row in sweep]
    curve = scores[:1]
    for before, after in pairwise(scores):
        for step in range(1, _STEPS + 1):
            short, long = (
                _between(a, b, step / _STEPS) for a, b in zip(before, after, strict=True)
            )
            curve.append((short, long))
    return curve


def _between(one: Interval, other: Interval, share: float) -> Interval:
    value, low, high = (
        (1 - share) * getattr(one, part) + share * getattr(other, part)
        for part in ("value", "low", "high")
    )
    return Interval(value, low, high, one.n)


def tradeoff_message(rows: Sequence[Scored]) -> str:
    """Where PCM lies to the sweep of the short loss's weight."""
    sweep = short_weight_sweep(rows)
    places = {
        row.label: against_sweep(row, sweep)
        for row in rows
        if row.recipe.get("objective") == "longclip" and len(sweep) > 1
    }
    found = []
    for place in ("above", "on", "below"):
        labels = [label for label in places if places[label] == place]
        if labels:
            lies = "lies" if len(labels) == 1 else "lie"
            found.append(f"“{listed(labels)}” {lies} {place} the curve of the short loss's weight")
    return listed(found) or "Short captions in the loss: what they bring and cost"


def tradeoff_figure(rows: Sequence[Scored], reference: Sequence[str] = ("KPS",)) -> go.Figure:
    """R@1 on long against short captions: every fine-tuned model, and where they came from.

    `reference` names the stretched models to show beside the model as it was. The line joins the
    models trained with the full image feature, by the weight of their short loss.
    """
    shown = [
        row for row in rows if row.stage in ("start", "fine-tuned") or (row.label in reference)
    ]
    chart = framed(
        tradeoff_message(rows),
        x="short captions: R@1 (%), mean of both directions",
        y="long captions: R@1 (%)",
        subtitle="dotted: short loss weighed from 0 up, full image feature; whiskers: 95%, one "
        "training seed",
        height=520,
    )
    sweep = short_weight_sweep(rows)
    chart.add_scatter(
        x=[100 * short_score(row).value for row in sweep],
        y=[100 * long_score(row).value for row in sweep],
        line={"color": COLOURS["blue"], "width": 2, "dash": "dot"},
        mode="lines",
        hoverinfo="skip",
    )
    for row in shown:
        _add_model(chart, row)
    x_span, y_span = _span(map(short_score, shown)), _span(map(long_score, shown))
    chart.update_xaxes(range=x_span)
    chart.update_yaxes(range=y_span)
    chart.update_layout(margin={"l": _LEFT, "r": _RIGHT})
    _add_names(chart, shown, sweep, x_span, y_span)
    return chart


def _style(row: Scored) -> tuple[str, str]:
    return STYLES[row.recipe.get("objective", "")]


def _add_model(chart: go.Figure, row: Scored) -> None:
    short, long = scaled(short_score(row)), scaled(long_score(row))
    colour, symbol = _style(row)
    whisker = {"type": "data", "color": colour, "thickness": 1.5, "width": 3}
    chart.add_scatter(
        x=[short.value],
        y=[long.value],
        error_x=whisker | _arms(short),
        error_y=whisker | _arms(long),
        marker={
            "color": colour,
            "symbol": symbol,
            "size": 15 if symbol.startswith("diamond") else 12,
            "line": {"width": 2, "color": colour},
        },
        mode="markers",
        name=row.label,
        hovertemplate=f"{row.label}<br>short %{{x:.1f}}, long %{{y:.1f}}<extra></extra>",
    )


def _arms(score: Interval) -> dict[str, list[float]]:
    return {"array": [score.high - score.value], "arrayminus": [score.value - score.low]}


def _span(scores) -> tuple[float, float]:
    scores = [scaled(score) for score in scores]
    low, high = min(s.low for s in scores), max(s.high for s in scores)
    room = 0.14 * max(2.0, high - low)
    return low - room, high + room


def _add_names(
    chart: go.Figure,
    shown: Sequence[Scored],
    sweep: Sequence[Scored],
    x_span: tuple[float, float],
    y_span: tuple[float, float],
) -> None:
    width = _WIDTH - _LEFT - _RIGHT
    height = plot_height(chart)

    def across(value: float) -> float:
        return (100 * value - x_span[0]) / (x_span[1] - x_span[0]) * width

    def down(value: float) -> float:
        return (y_span[1] - 100 * value) / (y_span[1] - y_span[0]) * height

    scores = [(short_score(row), long_score(row)) for row in shown]
    centres = [(across(short.value), down(long.value)) for short, long in scores]
    whiskers = [
        box
        for (short, long), (x, y) in zip(scores, centres, strict=True)
        for box in (
            Box(across(short.low), y - 5, across(short.high), y + 5),
            Box(x - 5, down(long.high), x + 5, down(long.low)),
        )
    ]
    curve = [
        Box(across(s.value) - 2, down(t.value) - 2, across(s.value) + 2, down(t.value) + 2)
        for s, t in _interpolated(sweep)[::10]
    ]
    names = [_name(row) for row in shown]
    places = beside_points(centres, names, whiskers + curve, (width, height))
    for row, name, (x, y), (label_x, label_y) in zip(shown, names, centres, places, strict=True):
        chart.add_annotation(
            x=100 * short_score(row).value,
            y=100 * long_score(row).value,
            xshift=label_x - x,
            yshift=y - label_y,
            text=name,
            showarrow=False,
            font={"color": text_colour(_style(row)[0]), "size": 13},
        )


def _name(row: Scored) -> str:
    if row.variance_kept is None:
        return row.label
    return f"{row.label}<br>{percent(row.variance_kept, 2)} of the variance kept"
