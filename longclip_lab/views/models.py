"""Figures of a model's insides and of what fine-tuning trades.

T positions, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views.theme import (
    COLOURS,
    GREY,
    PALETTE,
    SYMBOLS,
    Box,
    Lane,
    beside_points,
    compare,
    end_labels,
    framed,
    lanes,
    listed,
    mean,
    percent,
    plot_height,
    points,
    scaled,
    text_colour,
    whiskers,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from longclip_lab.objectives import RankMeter


# --- Ways of stretching compared on the same test sets, without any training ---


class Scored(Protocol):
    """What these figures need of a model's row; `reproduction.ModelRow` has it."""

    label: str
    stage: str
    long_i2t: Interval
    long_t2i: Interval
    short_i2t: Interval
    short_t2i: Interval
    variance_kept: float | None
    recipe: dict


def long_score(row: Scored) -> Interval:
    """R@1 on long captions, mean of both directions."""
    return mean(row.long_i2t, row.long_t2i)


def short_score(row: Scored) -> Interval:
    """R@1 on short captions, mean of both directions."""
    return mean(row.short_i2t, row.short_t2i)


def untrained(rows: Sequence[Scored]) -> list[Scored]:
    """The model as it was and its stretched copies."""
    return [row for row in rows if row.stage in ("start", "stretched")]


def stretching_message(rows: Sequence[Scored]) -> str:
    """Which ways of stretching cost short captions something, against the model as it was."""
    start, *stretched = untrained(rows)
    costs = {
        f"“{row.label}”": points(short_score(row), short_score(start))
        for row in stretched
        if compare(short_score(row), short_score(start)) == "lower"
    }
    free = [f"“{row.label}”" for row in stretched if f"“{row.label}”" not in costs]
    if not costs:
        return "No way of stretching costs short captions anything that can be seen"
    message = listed([f"{label} costs short captions {cost}" for label, cost in costs.items()])
    return f"{message}; {listed(free)} nothing that can be seen" if free else message


def long_message(rows: Sequence[Scored]) -> str:
    """What stretching alone brings long captions, against the model as it was."""
    start, *stretched = untrained(rows)
    verdicts = {row.label: compare(long_score(row), long_score(start)) for row in stretched}
    told = [
        f"{points(long_score(row), long_score(start))} with “{row.label}”"
        for row in stretched
        if verdicts[row.label] == "higher"
    ]
    lost = [f"“{label}”" for label in verdicts if verdicts[label] == "lower"]
    gain = (
        f"Long captions gain {listed(told)}" if told else "Long captions gain nothing that is seen"
    )
    return f"{gain}; they lose with {listed(lost)}" if lost else gain


def stretching_figure(rows: Sequence[Scored]) -> go.Figure:
    """R@1 on long and short captions of a model as it was and stretched, without training."""
    groups = {
        heading: [
            Lane(row.label, scaled(score(row)), PALETTE[number], SYMBOLS[number])
            for number, row in enumerate(untrained(rows))
        ]
        for heading, score in (("Long captions", long_score), ("Short captions", short_score))
    }
    everything = [lane.score for members in groups.values() for lane in members]
    low, high = min(s.low for s in everything), max(s.high for s in everything)
    room = max(2.0, high - low)
    return lanes(
        stretching_message(rows),
        groups,
        x="R@1 (%), mean of both directions",
        span=(max(0, low - 0.1 * room), high + 0.1 * room),
        subtitle=f"without any training; {everything[0].n:,} pictures; whiskers: 95%",
    )


# --- Figures of a model's insides: how alike its positions are, how many directions features ---

_HEADING = 24  # pixels between the title and the maps
_CELLS = 64  # a side of a heat map; 64 x 64 bytes each keep the figure small


def position_message(tables: Mapping[str, np.ndarray]) -> str:
    """How many of the first table's positions each of the others begins with."""
    (first_label, first), *others = tables.items()
    if not others:
        return f"How alike the positions of “{first_label}” are"
    kept = {label: _kept(first, table) for label, table in others}
    told = listed([f"{label} {count}" for label, count in kept.items()])
    return f"Positions left as they were in “{first_label}”: {told}"


def _kept(first_TW: np.ndarray, other_TW: np.ndarray) -> int:
    shared = min(len(first_TW), len(other_TW))
    same = np.isclose(first_TW[:shared], other_TW[:shared], atol=1e-6).all(1)
    return shared if same.all() else int(same.argmin())


def similarity(positional_embedding_TW: np.ndarray) -> np.ndarray:
    """Cosine similarity of all pairs of positions [T, T]."""
    lengths = np.linalg.norm(positional_embedding_TW, axis=1, keepdims=True)
    unit_TW = positional_embedding_TW / np.maximum(lengths, 1e-12)
    return unit_TW @ unit_TW.T


def position_similarity_figure(positions: Mapping[str, torch.Tensor | np.ndarray]) -> go.Figure:
    """Heat maps of cosine similarity between positions; one for each table [T, W] by label.

    Long tables are drawn by every second, third, ... position. Raises LabError for an empty
    mapping and for tables that are not [T, W].
    """
    tables = {label: np.asarray(table, dtype=np.float32) for label, table in positions.items()}
    if not tables or any(table.ndim != 2 for table in tables.values()):
        shapes = {label: table.shape for label, table in tables.items()}
        raise LabError(f"expected {{label: positions [T, W]}}, got {shapes}.")
    columns = min(len(tables), 2 if len(tables) in (2, 4) else 3)
    rows = -(-len(tables) // columns)
    base = framed(position_message(tables), at_edge=True)
    base.update_layout(title_pad_b=base.layout.title.pad.b + _HEADING)
    chart = make_subplots(
        rows,
        columns,
        subplot_titles=[f"{label} ({len(table)})" for label, table in tables.items()],
        horizontal_spacing=0.09,
        vertical_spacing=0.16,
    )
    chart.update_layout(base.layout.to_plotly_json())
    for index, table_TW in enumerate(tables.values()):
        step = -(-len(table_TW) // _CELLS)
        row, column = index // columns + 1, index % columns + 1
        chart.add_heatmap(
            z=np.rint(100 * similarity(table_TW)[::step, ::step]).astype(np.int8),
            x0=0, dx=step, y0=0, dy=step, coloraxis="coloraxis", row=row, col=column,
            hovertemplate="%{x} and %{y}: %{z}%<extra></extra>",
        )  # fmt: skip
        chart.update_yaxes(autorange="reversed", row=row, col=column)
    chart.update_xaxes(title_text="position", row=rows)
    chart.update_yaxes(title_text="position", col=1)
    side = 540 / columns
    chart.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmax": 100,
            "colorbar": {
                "title": {"text": "cosine (%)", "side": "right"},
                "outlinewidth": 0,
                "thickness": 14,
            },
        },
        height=round(base.layout.margin.t + rows * (side + 60) + 40),
        margin={"t": base.layout.margin.t + _HEADING, "r": 20},
    )
    return chart


def spectrum_figure(meter: RankMeter) -> go.Figure:
    """The share of variance of every principal direction, those that PCM keeps in colour."""
    shares = 100 * np.array(meter.spectrum)
    shares = shares[: max(meter.rank, 1)]
    kept = np.arange(len(shares)) < meter.k
    chart = framed(
        meter.verdict,
        x="principal direction of the batch",
        y="share of the variance (%, log)",
        subtitle=f"{meter.batch} features with {meter.dimension} dimensions",
    )
    chart.add_bar(
        x=np.arange(1, len(shares) + 1),
        y=np.round(shares, 6),
        marker={"color": np.where(kept, COLOURS["blue"], "#BFBFBF").tolist()},
        hovertemplate="direction %{x}: %{y:.3g}%<extra></extra>",
    )
    last_kept = min(meter.k, len(shares))
    chart.add_annotation(
        x=last_kept + 0.6, xanchor="left", y=1, yref="paper", yanchor="top", showarrow=False,
        text=f"the first {last_kept} keep<br>{percent(meter.variance_kept, 2)} of the variance",
        align="left", font={"color": "#00609A", "size": 14},
    )  # fmt: skip
    chart.add_vline(x=last_kept + 0.5, line={"color": COLOURS["blue"], "width": 1.5})
    low = np.floor(np.log10(max(shares.min(), 1e-6)))
    chart.update_yaxes(type="log", range=[low, 2.1], exponentformat="none")
    chart.update_xaxes(range=[0.2, max(len(shares), last_kept + 12) + 0.8])
    chart.update_layout(bargap=0.15)
    return chart


# --- Figures of primary components: when they leave anything out, and what they hold ---


def batch_size_message(meters: Sequence[RankMeter]) -> str:
    """Up to which batch the largest k does nothing, and how much it leaves out at most."""
    k = max(meter.k for meter in meters)
    own = [meter for meter in meters if meter.k == k]
    left = 100 * (1 - min(meter.variance_kept for meter in own))
    idle = [meter.batch for meter in own if meter.is_identity]
    if len(idle) == len(own):
        return f"With k = {k}, PCM does nothing in any of these batches"
    most = f"at most {left:.2g}% of the variance is left out"
    if not idle:
        return f"With k = {k}, {most}"
    return f"With k = {k}, PCM does nothing in batches of up to {max(idle)}; beyond, {most}"


def batch_size_figure(meters: Sequence[RankMeter]) -> go.Figure:
    """Variance kept by the first k components against the batch size, a line for every k.

    Hollow points are batches in which the coarse features are the features. Raises LabError for
    no meters.
    """
    if not meters:
        raise LabError("expected at least one rank meter, got none.")
    chart = framed(
        batch_size_message(meters),
        x="images in the batch (log)",
        y="variance kept (%)",
        subtitle="hollow: the coarse features are the features, exactly",
    )
    ks = sorted({meter.k for meter in meters}, reverse=True)
    ends = []
    for number, k in enumerate(ks):
        own = sorted((m for m in meters if m.k == k), key=lambda meter: meter.batch)
        shares = [100 * meter.variance_kept for meter in own]
        symbols = [f"{SYMBOLS[number]}-open" if m.is_identity else SYMBOLS[number] for m in own]
        chart.add_scatter(
            x=[meter.batch for meter in own],
            y=shares,
            name=f"k = {k}",
            mode="lines+markers",
            line={"color": PALETTE[number]},
            marker={"symbol": symbols, "size": 11, "line": {"width": 2, "color": PALETTE[number]}},
            hovertemplate="%{x} images: %{y:.2f}%",
        )
        ends.append(shares[-1])
    batches = sorted({meter.batch for meter in meters})
    low = 100 * min(meter.variance_kept for meter in meters) - 4
    end_labels(
        chart, ends, [f"k = {k}" for k in ks], PALETTE[: len(ks)],
        units_per_pixel=(103 - low) / plot_height(chart),
    )  # fmt: skip
    chart.update_yaxes(range=[low, 103])
    chart.update_xaxes(type="log", tickvals=batches, ticktext=[str(batch) for batch in batches])
    return chart


def encoding_message(table: pd.DataFrame) -> str:
    """Which facts explain most of the variance of these directions together."""
    facts = [name for name in table.columns if name != "variance"]
    weight = table["variance"] / table["variance"].sum()
    whole = (table[facts].mul(weight, axis=0)).sum().sort_values(ascending=False)
    told = listed([f"{name} ({100 * share:.0f}%)" for name, share in whole.head(3).items()])
    return f"What the first {len(table)} directions vary with most: {told}"


def encoding_figure(table: pd.DataFrame, shown: Sequence[int] | None = None) -> go.Figure:
    """Heat map of a table of `probing.linear_probe.explained_by`: directions by facts.

    `shown` are the directions to draw, from 1; the title speaks of all in the table.
    """
    facts = [name for name in table.columns if name != "variance"]
    chart = framed(
        encoding_message(table),
        y="principal direction (its share of all variance)",
        subtitle="share of the direction's variance that the fact explains (%)",
        at_edge=True,
    )
    table = table if shown is None else table.loc[list(shown)]
    percents = np.clip(np.rint(100 * table[facts].to_numpy()), 0, None)
    chart.add_heatmap(
        z=percents,
        x=facts,
        y=[f"{number} ({share:.0%})" for number, share in table["variance"].items()],
        texttemplate="%{z:.0f}",
        showscale=False,
        hovertemplate="direction %{y}, %{x}: %{z:.0f}%<extra></extra>",
    )
    chart.update_yaxes(autorange="reversed", type="category", showgrid=False)
    chart.update_xaxes(side="bottom", type="category", showgrid=False)
    margins = chart.layout.margin.t + chart.layout.margin.b
    chart.update_layout(height=round(margins + 26 * len(table) + 40))
    return chart


# --- Long against short captions: where fine-tuned models lie between the two ---

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
    thin = {"thickness": 1.5, "width": 3}
    chart.add_scatter(
        x=[short.value],
        y=[long.value],
        error_x=whiskers(colour, short, **thin),
        error_y=whiskers(colour, long, **thin),
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
