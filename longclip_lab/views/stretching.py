"""Figures of the two numbers of knowledge-preserved stretching: how many positions it keeps, and
how far it stretches the others.

The slider is plotly's own, so it works on a page of the book, where no kernel runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views.frame import GREY, framed
from longclip_lab.views.labels import text_colour
from longclip_lab.views.lanes import scaled
from longclip_lab.views.theme import COLOURS, add_curve
from longclip_lab.views.wording import compare, listed

Scores = Mapping[str, Interval]
COLOUR_OF = dict(zip(("long", "short"), (COLOURS["blue"], COLOURS["vermillion"]), strict=True))
DASH_OF = {"long": "solid", "short": "dash"}
_HEADING = 24  # pixels of a panel's own title


def keep_message(scores: Mapping[int, Scores]) -> str:
    """From which `keep` on each kind of caption scores as well as with the best one."""
    enough = {kind: first_enough(scores, kind) for kind in _kinds(scores)}
    told = listed([f"{keep} positions for {kind} captions" for kind, keep in enough.items()])
    return f"Enough to keep: {told}"


def first_enough(scores: Mapping[int, Scores], kind: str) -> int:
    """The smallest `keep` from which on no score lies below the best one's interval."""
    keeps = sorted(scores)
    best = max((scores[keep][kind] for keep in keeps), key=lambda score: score.value)
    lower = [keep for keep in keeps if compare(scores[keep][kind], best) == "lower"]
    return keeps[keeps.index(lower[-1]) + 1] if lower else keeps[0]


def keep_figure(
    scores: Mapping[int, Scores], length: int = 248, old_length: int = 77, start: int = 20
) -> go.Figure:
    """R@1 against `keep`, and behind a slider what the new positions read of the old ones.

    `scores` maps keep to {"long": R@1, "short": R@1} of the table stretched to `length`. Each
    step of the slider shows one keep, first `start`. Raises LabError if `start` is not among them.
    """
    keeps = sorted(scores)
    if start not in scores:
        raise LabError(f"expected start to be one of the keeps {keeps}, got {start}.")
    chart = framed(
        keep_message(scores),
        x="positions kept",
        y="R@1 (%), mean of both directions",
        subtitle=f"{old_length} positions stretched to {length}; without any training; bands: 95%",
        height=520,
    )
    for kind in _kinds(scores):
        numbers = [scaled(scores[keep][kind]) for keep in keeps]
        value, low, high = (
            [getattr(n, part) for n in numbers] for part in ("value", "low", "high")
        )
        add_curve(chart, keeps, value, low, high, kind, COLOUR_OF[kind], dash=DASH_OF[kind])
        chart.add_annotation(
            x=keeps[-1], y=value[-1], xanchor="right", yshift=16 if kind == "long" else -16,
            text=f"{kind} captions", showarrow=False, font={"color": text_colour(COLOUR_OF[kind])},
        )  # fmt: skip
    fixed = len(chart.data)
    for keep in keeps:
        _add_step(chart, keep, scores[keep], length, old_length, visible=keep == start)
    chart.update_layout(
        xaxis={"domain": [0.57, 1], "range": [-3, keeps[-1] + 3]},
        yaxis={"anchor": "x"},
        xaxis2={"domain": [0, 0.43], "title": {"text": "new position"}, "range": [0, length]},
        yaxis2={"anchor": "x2", "title": {"text": "reads old position"}},
        yaxis2_range=[0, old_length + 3],
        sliders=[_slider(keeps, keeps.index(start), fixed)],
        margin={"b": 130},
    )
    chart.update_xaxes(title_standoff=6)
    chart.update_yaxes(title_standoff=6)
    # The y axis title of the right panel belongs beside it, not at the figure's edge.
    chart.layout.yaxis.automargin = False
    return chart


def _kinds(scores: Mapping[int, Scores]) -> list[str]:
    first = next(iter(scores.values()))
    return [kind for kind in COLOUR_OF if kind in first]


def _add_step(
    chart: go.Figure, keep: int, own: Scores, length: int, old_length: int, visible: bool
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
        score = scaled(own[kind])
        chart.add_scatter(
            x=[keep],
            y=[score.value],
            mode="markers+text",
            text=[f"{score.value:.1f}"],
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


def keep_ratio_message(scores: Mapping[tuple[int, float], Scores], kind: str = "short") -> str:
    """How far the scores of a kind of caption spread over the ratios, for each keep at most."""
    keeps = sorted({keep for keep, _ in scores})
    spread = {keep: _spread(scores, keep, kind) for keep in keeps}
    widest = max(spread, key=lambda keep: spread[keep])
    if spread[widest] < 0.0005:
        return f"The ratio changes nothing for {kind} captions, whatever is kept"
    free = [keep for keep in keeps if all(spread[k] < 0.0005 for k in keeps if k >= keep)]
    moved = f"{100 * spread[widest]:.0f} points"
    told = f"With {widest} positions kept the ratio moves {kind} captions by {moved}"
    return f"{told}; with {free[0]} or more, not at all" if free else told


def _spread(scores: Mapping[tuple[int, float], Scores], keep: int, kind: str) -> float:
    values = [score[kind].value for (own, _), score in scores.items() if own == keep]
    return max(values) - min(values)


def keep_ratio_figure(scores: Mapping[tuple[int, float], Scores]) -> go.Figure:
    """Heat maps of R@1 over keep and ratio, one for each kind of caption.

    `scores` maps (keep, ratio) to {"long": R@1, "short": R@1}.
    """
    keeps, ratios = (sorted({key[part] for key in scores}) for part in (0, 1))
    kinds = [kind for kind in COLOUR_OF if kind in next(iter(scores.values()))]
    base = framed(keep_ratio_message(scores))
    titles = [f"{kind} captions: R@1 (%)" for kind in kinds]
    chart = make_subplots(1, len(kinds), subplot_titles=titles, horizontal_spacing=0.14)
    chart.update_layout(base.layout.to_plotly_json())
    for column, kind in enumerate(kinds, start=1):
        percents = [[100 * scores[keep, ratio][kind].value for keep in keeps] for ratio in ratios]
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
