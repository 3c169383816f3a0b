"""Differences between methods that differ in one thing: a row each, a panel for each score."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views.frame import GREY, framed
from longclip_lab.views.theme import COLOURS

_LANE, _HEAD = 34, 30
_MORE, _LESS, _OPEN = COLOURS["blue"], COLOURS["vermillion"], "#8C8C8C"

Gaps = Mapping[str, Mapping[str, Interval]]


def gaps_figure(
    gaps: Gaps, published: Mapping[str, Mapping[str, float]] | None = None, subtitle: str = ""
) -> go.Figure:
    """Differences by what was changed and by score, with their 95% intervals, in points.

    `gaps` are shares from -1 to 1, as `reproduction.paired.difference` gives them. An interval
    that leaves 0 out is coloured, any other is hollow and grey. `published` are a paper's
    differences in points, drawn as open diamonds where they are.

    Raises LabError for no differences, and for rows with different scores.
    """
    names = list(next(iter(gaps.values()), ()))
    if not names or any(list(row) != names for row in gaps.values()):
        raise LabError("expected at least one difference, and the same scores for each of them.")
    frame = framed(gaps_message(gaps), subtitle=subtitle, at_edge=True)
    chart = make_subplots(
        rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[f"{name} (points)" for name in names],
    )  # fmt: skip
    chart.update_layout(frame.layout)
    chart.update_layout(title={"pad": {"b": frame.layout.title.pad.b + _HEAD}})
    for column, name in enumerate(names, start=1):
        for row, (what, found) in enumerate(gaps.items()):
            paper = (published or {}).get(what, {}).get(name)
            _add(chart, what, found[name], paper, row, column)
        # after the dots: plotly draws no line into an empty panel
        zero = {"color": GREY, "width": 1.5, "dash": "dot"}
        chart.add_vline(x=0, line=zero, layer="below", row=1, col=column)
    margin = frame.layout.margin
    chart.update_yaxes(
        tickvals=list(range(len(gaps))),
        ticktext=list(gaps),
        range=[len(gaps) - 0.4, -0.6],
        ticks="",
        showline=False,
        showgrid=False,
        col=1,
    )
    chart.update_annotations(font_size=14)
    chart.update_layout(
        height=round(_LANE * len(gaps) + _HEAD + margin.t + margin.b),
        margin={"t": margin.t + _HEAD, "r": 16, "b": 40},
        showlegend=False,
    )
    return chart


def gaps_message(gaps: Gaps) -> str:
    """How many of the changes move a score by more than chance does.

    >>> seen, open = Interval(0.2, 0.1, 0.3, 3), Interval(0, -1, 1, 3)
    >>> gaps_message({"a": {"long": seen}, "b": {"long": open}})
    'Of 2 changes, 1 moves a score by more than chance does: a'
    """
    decided = [
        what
        for what, row in gaps.items()
        if any(gap.low > 0 or gap.high < 0 for gap in row.values())
    ]
    verb = "moves" if len(decided) == 1 else "move"
    told = (
        f"Of {len(gaps)} changes, {len(decided) or 'none'} {verb} a score by more than chance does"
    )
    return f"{told}: {decided[0]}" if len(decided) == 1 else told


def _add(
    chart: go.Figure, what: str, gap: Interval, paper: float | None, row: int, column: int
) -> None:
    value, low, high = (100 * bound for bound in (gap.value, gap.low, gap.high))
    decided = low > 0 or high < 0
    colour = (_MORE if low > 0 else _LESS) if decided else _OPEN
    chart.add_scatter(
        x=[value],
        y=[row],
        error_x={
            "type": "data",
            "array": [high - value],
            "arrayminus": [value - low],
            "color": colour,
            "thickness": 2,
            "width": 4,
        },
        marker={
            "color": colour,
            "size": 10,
            "symbol": "circle" if decided else "circle-open",
            "line": {"width": 2, "color": colour},
        },
        mode="markers",
        hovertemplate=f"{what}<br>{value:+.1f} ({low:+.1f} to {high:+.1f})<extra></extra>",
        row=1,
        col=column,
    )
    if paper is not None:
        chart.add_scatter(
            x=[paper],
            y=[row],
            marker={"color": GREY, "size": 11, "symbol": "diamond-open", "line": {"width": 2}},
            mode="markers",
            hovertemplate=f"{what}, the paper<br>{paper:+.2f}<extra></extra>",
            row=1,
            col=column,
        )
