"""How long a caption should be: scores by sub-captions trained with and by tokens read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views.frame import framed, plot_height
from longclip_lab.views.labels import end_labels
from longclip_lab.views.theme import PALETTE, add_curve
from longclip_lab.views.wording import listed

_DASHES = ("solid", "dash", "dot", "dashdot")
_STAR = "#D62728"


def subcaptions_figure(
    counts: Sequence[int | None],
    scores: Mapping[str, Sequence[Interval]],
    subtitle: str = "",
) -> go.Figure:
    """LoTLIP's Figures 2 and 5: each test's score by the sub-captions of the training texts.

    `counts` are the numbers of sub-captions, 0 for alt-texts alone and None for all; `scores` has
    one interval for each of them, as shares, by the test's name. Raises LabError for numbers of
    scores that do not fit.
    """
    for name, found in scores.items():
        if len(found) != len(counts):
            raise LabError(f"{name}: expected {len(counts)} scores, got {len(found)}.")
    names = ["all" if count is None else str(count) for count in counts]
    chart = framed(
        subcaptions_message(names, scores),
        x="sub-captions in a training text",
        y="score (%)",
        subtitle=subtitle,
    )
    x = list(range(len(names)))
    add_curves(chart, x, scores)
    chart.update_xaxes(tickvals=x, ticktext=names, range=[-0.1, len(x) - 0.95])
    return chart


def subcaptions_message(names: Sequence[str], scores: Mapping[str, Sequence[Interval]]) -> str:
    """After how many sub-captions each test's mean is highest.

    >>> rising, falling = [Interval(v, v, v, 3) for v in (0.1, 0.2, 0.3)], None
    >>> subcaptions_message(["0", "1", "all"], {"long": rising, "short": rising[::-1]})
    'Highest mean by sub-captions in training: “long” with all and “short” with 0'
    """
    best = {
        test: names[max(range(len(names)), key=lambda i: found[i].value)]
        for test, found in scores.items()
    }
    told = listed([f"“{test}” with {name}" for test, name in best.items()])
    return f"Highest mean by sub-captions in training: {told}"


def token_limit_figure(
    limits: Sequence[int],
    scores: Mapping[str, Sequence[Interval]],
    flops: Sequence[int],
    subtitle: str = "",
) -> go.Figure:
    """LoTLIP's Figure 4: scores by the tokens that a model may read, and what they cost.

    `flops` are the text tower's operations for one text (`models.text_flops`), the red stars; the
    right axis has them. Raises LabError for numbers that do not fit the limits.
    """
    for name, found in {**scores, "flops": flops}.items():
        if len(found) != len(limits):
            raise LabError(f"{name}: expected {len(limits)} values, got {len(found)}.")
    chart = framed(
        limits_message(limits, scores, flops),
        x="token limit (start and end included)",
        y="R@1 (%)",
        subtitle=subtitle,
        height=460,
    )
    add_curves(chart, list(limits), scores)
    unit, name = (1e9, "GFLOP") if max(flops) >= 1e9 else (1e6, "MFLOP")
    chart.add_scatter(
        x=list(limits), y=[count / unit for count in flops], yaxis="y2", mode="lines+markers",
        marker={"symbol": "star", "size": 13, "color": _STAR},
        line={"color": _STAR, "width": 1, "dash": "dot"}, name=name,
        hovertemplate=f"%{{y:.3g}} {name}",
    )  # fmt: skip
    top = 1.15 * max(flops) / unit
    chart.update_layout(
        yaxis2={
            "overlaying": "y", "side": "right", "range": [0, top], "showgrid": False,
            "tickmode": "auto", "nticks": 5,
            "title": {"text": f"★ {name} for one text", "font": {"color": _STAR}},
            "tickfont": {"color": _STAR},
        },
        hovermode="x unified",
        showlegend=True,
    )  # fmt: skip
    for note in list(chart.layout.annotations):
        note.visible = False  # the right axis stands where names would
    chart.update_layout(margin={"r": 80, "b": 100})
    chart.update_xaxes(type="log", tickvals=list(limits), ticktext=[str(x) for x in limits])
    return chart


def limits_message(
    limits: Sequence[int], scores: Mapping[str, Sequence[Interval]], flops: Sequence[int]
) -> str:
    """Where each curve's mean is highest, and how the cost grows from first to last limit."""
    best = listed([
        f"“{name}” at {limits[max(range(len(limits)), key=lambda i: found[i].value)]}"
        for name, found in scores.items()
    ])  # fmt: skip
    factor = flops[-1] / flops[0]
    cost = f"{limits[-1]} tokens cost {factor:.1f} times as much as {limits[0]}"
    return f"{cost}; highest mean: {best}"


def add_curves(chart: go.Figure, x: list[float], scores: Mapping[str, Sequence[Interval]]) -> None:
    """Draw a curve with its band for each test, shares as percent, named at its end."""
    for number, (name, found) in enumerate(scores.items()):
        value, low, high = (
            [100 * getattr(score, part) for score in found] for part in ("value", "low", "high")
        )
        add_curve(chart, x, value, low, high, name, PALETTE[number % len(PALETTE)],
                  dash=_DASHES[number % len(_DASHES)])  # fmt: skip
    bounds = [100 * b for found in scores.values() for s in found for b in (s.low, s.high)]
    span = (max(0.0, min(bounds) - 3), min(100.0, max(bounds) + 3))
    chart.update_yaxes(range=span)
    end_labels(
        chart,
        [100 * found[-1].value for found in scores.values()],
        list(scores),
        [PALETTE[number % len(PALETTE)] for number in range(len(scores))],
        units_per_pixel=(span[1] - span[0]) / plot_height(chart),
        span=span,
    )
