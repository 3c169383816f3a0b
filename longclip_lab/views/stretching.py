"""Figures of stretching.

Scores are given as hits, one number (0 to 1) for each picture, in the same order for every model,
so that models are compared picture by picture. The slider is plotly's own: it works on a page of
the book, where no kernel runs.

N pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.views.theme import (
    COLOURS,
    GREY,
    PALETTE,
    SYMBOLS,
    Lane,
    add_curve,
    compare,
    end_labels,
    framed,
    lanes,
    listed,
    mean,
    plot_height,
    points,
    scaled,
)

# --- Figures of the two numbers of knowledge-preserved stretching: how many positions it ---

Hits = Mapping[str, np.ndarray]  # "long" and "short": [N]
COLOUR_OF = dict(zip(("long", "short"), (COLOURS["blue"], COLOURS["vermillion"]), strict=True))
DASH_OF = {"long": "solid", "short": "dash"}
POINT = 0.01
_HEADING = 24  # pixels of a panel's own title


def keep_message(hits: Mapping[int, Hits]) -> str:
    """Which numbers of kept positions cost nothing that matters, for each kind of caption."""
    ranges = {kind: as_good_as_the_best(hits, kind) for kind in _kinds(hits)}
    told = listed(
        [f"{first} to {last} for {kind} captions" for kind, (first, last) in ranges.items()]
    )
    return f"How many to keep without a sure loss of a point: {told}"


def as_good_as_the_best(hits: Mapping[int, Hits], kind: str) -> tuple[int, int]:
    """The smallest and the largest `keep` of the run around the best that loses nothing to it.

    One loses if the 95% interval of the difference on each picture lies below minus one point.
    """
    keeps = sorted(hits)
    best = max(keeps, key=lambda keep: np.mean(hits[keep][kind]))
    lower = [
        keep for keep in keeps if bootstrap_mean(hits[keep][kind] - hits[best][kind]).high < -POINT
    ]
    before = max((keep for keep in lower if keep < best), default=-1)
    after = min((keep for keep in lower if keep > best), default=keeps[-1] + 1)
    run = [keep for keep in keeps if before < keep < after]
    return run[0], run[-1]


def keep_figure(
    hits: Mapping[int, Hits], length: int = 248, old_length: int = 77, start: int = 20
) -> go.Figure:
    """R@1 against `keep`, and behind a slider what the new positions read of the old ones.

    `hits` maps keep to {"long": [N], "short": [N]} of the table stretched to `length`. Each step of
    the slider shows one keep, first `start`. Raises LabError if `start` is not among them.
    """
    keeps = sorted(hits)
    if start not in hits:
        raise LabError(f"expected start to be one of the keeps {keeps}, got {start}.")
    chart = framed(
        keep_message(hits),
        x="positions kept",
        y="R@1 (%), mean of both directions",
        subtitle=f"{old_length} positions stretched to {length}; without any training; bands: 95%",
        height=520,
    )
    for kind in _kinds(hits):
        numbers = [scaled(bootstrap_mean(hits[keep][kind])) for keep in keeps]
        value, low, high = (
            [getattr(n, part) for n in numbers] for part in ("value", "low", "high")
        )
        add_curve(chart, keeps, value, low, high, kind, COLOUR_OF[kind], dash=DASH_OF[kind])
    fixed = len(chart.data)
    for keep in keeps:
        _add_step(chart, keep, hits[keep], length, old_length, visible=keep == start)
    chart.update_layout(
        xaxis={"domain": [0.57, 1], "range": [-3, keeps[-1] + 3]},
        yaxis={"anchor": "x"},
        xaxis2={"domain": [0, 0.43], "title": {"text": "new position"}, "range": [0, length]},
        yaxis2={"anchor": "x2", "title": {"text": "reads old position"}},
        yaxis2_range=[0, old_length + 3],
        sliders=[_slider(keeps, keeps.index(start), fixed)],
        margin={"b": 130},
    )
    shares = [100 * np.mean(own[kind]) for own in hits.values() for kind in own]
    end_labels(
        chart,
        [100 * float(np.mean(hits[keeps[-1]][kind])) for kind in _kinds(hits)],
        _kinds(hits),
        [COLOUR_OF[kind] for kind in _kinds(hits)],
        units_per_pixel=1.2 * (max(shares) - min(shares)) / plot_height(chart),
    )
    chart.update_xaxes(title_standoff=6)
    chart.update_yaxes(title_standoff=6)
    # The y axis title of the right panel belongs beside it, not at the figure's edge.
    chart.layout.yaxis.automargin = False
    return chart


def _kinds(hits: Mapping) -> list[str]:
    first = next(iter(hits.values()))
    return [kind for kind in COLOUR_OF if kind in first]


def _add_step(
    chart: go.Figure, keep: int, own: Hits, length: int, old_length: int, visible: bool
) -> None:
    """What one step of the slider shows: the map of positions, and its points on the curves."""
    ratio = (length - keep) / (old_length - keep)
    last_exact = keep + ratio * (old_length - 1 - keep)
    chart.add_scatter(
        x=[0, keep, last_exact, length - 1],
        y=[0, keep, old_length - 1, keep + (length - 1 - keep) / ratio],
        mode="lines",
        line={"color": COLOURS["green"], "width": 3},
        xaxis="x2",
        yaxis="y2",
        visible=visible,
        hovertemplate="new %{x:.0f} reads old %{y:.1f}<extra></extra>",
    )
    for kind in _kinds({keep: own}):
        score = 100 * float(np.mean(own[kind]))
        chart.add_scatter(
            x=[keep],
            y=[score],
            mode="markers+text",
            text=[f"{score:.1f}"],
            textposition="top center" if kind == "long" else "bottom center",
            marker={"size": 14, "color": COLOUR_OF[kind], "line": {"width": 2, "color": "white"}},
            visible=visible,
            hoverinfo="skip",
        )


def _slider(keeps: Sequence[int], active: int, fixed: int) -> dict:
    """Each step shows the `fixed` first traces and its own group of the others."""

    def step(index: int, keep: int, size: int) -> dict:
        own = [place // size == index for place in range(size * len(keeps))]
        return {
            "method": "restyle",
            "label": str(keep),
            "args": [{"visible": [True] * fixed + own}],
        }

    size = 1 + fixed // 2  # a map, and a point for every curve with its band
    return {
        "active": active,
        "steps": [step(index, keep, size) for index, keep in enumerate(keeps)],
        "currentvalue": {"prefix": "keep = ", "font": {"size": 15}},
        "pad": {"t": 58},
        "len": 1,
        "font": {"color": GREY},
    }


def keep_ratio_message(hits: Mapping[tuple[int, float], Hits], kind: str = "short") -> str:
    """How far the scores of a kind of caption spread over the ratios, for each keep at most."""
    keeps = sorted({keep for keep, _ in hits})
    spread = {keep: _spread(hits, keep, kind) for keep in keeps}
    widest = max(spread, key=lambda keep: spread[keep])
    if spread[widest] < 0.0005:
        return f"The ratio changes nothing for {kind} captions, whatever is kept"
    free = [keep for keep in keeps if all(spread[k] < 0.0005 for k in keeps if k >= keep)]
    moved = f"{100 * spread[widest]:.0f} points"
    told = f"With {widest} positions kept the ratio moves {kind} captions by {moved}"
    return f"{told}; with {free[0]} or more, not at all" if free else told


def _spread(hits: Mapping[tuple[int, float], Hits], keep: int, kind: str) -> float:
    values = [np.mean(found[kind]) for (own, _), found in hits.items() if own == keep]
    return max(values) - min(values)


def keep_ratio_figure(hits: Mapping[tuple[int, float], Hits]) -> go.Figure:
    """Heat maps of R@1 over keep and ratio, one for each kind of caption.

    `hits` maps (keep, ratio) to {"long": [N], "short": [N]}.
    """
    keeps, ratios = (sorted({key[part] for key in hits}) for part in (0, 1))
    kinds = _kinds(hits)
    base = framed(keep_ratio_message(hits))
    titles = [f"{kind} captions: R@1 (%)" for kind in kinds]
    chart = make_subplots(1, len(kinds), subplot_titles=titles, horizontal_spacing=0.14)
    chart.update_layout(base.layout.to_plotly_json())
    for column, kind in enumerate(kinds, start=1):
        percents = [
            [100 * float(np.mean(hits[keep, ratio][kind])) for keep in keeps] for ratio in ratios
        ]
        chart.add_heatmap(
            z=percents, x=[str(keep) for keep in keeps], y=[f"{ratio:g}" for ratio in ratios],
            coloraxis="coloraxis", texttemplate="%{z:.0f}", row=1, col=column,
            hovertemplate="keep %{x}, ratio %{y}: %{z:.1f}%<extra></extra>",
        )  # fmt: skip
        chart.update_xaxes(title_text="positions kept", type="category", row=1, col=column)
    chart.update_yaxes(title_text="ratio", type="category", col=1)
    chart.update_layout(
        coloraxis={"colorscale": "Cividis", "showscale": False},
        height=round(base.layout.margin.t + 46 * len(ratios) + 110),
        margin={"t": base.layout.margin.t + _HEADING, "r": 20},
        title_pad_b=base.layout.title.pad.b + _HEADING,
    )
    return chart


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
