"""A table of a paper beside the same table of ours: dots with intervals, a panel for each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.evaluation import Interval
from longclip_lab.views.frame import GREY, framed
from longclip_lab.views.theme import COLOURS

_LANE, _TALLEST_HEAD, _PANEL_TITLE = 27, 44, 26
_OURS, _BASELINE, _PAPER = COLOURS["blue"], COLOURS["vermillion"], GREY


class Line(Protocol):
    """What the figure needs of a line; `reproduction.bookkeeping.LineRecord` has it."""

    label: str
    published: Mapping[str, float | None]
    ours: Mapping[str, Interval]
    is_baseline: bool


class Claim(Protocol):
    """A claim's verdict; a control is none of the paper's."""

    verdict: str
    is_control: bool


class Record(Protocol):
    """What the figure needs of a record; `reproduction.bookkeeping.LedgerRecord` has it."""

    source: str
    claims: Sequence[Claim]
    columns: Mapping[str, str]
    lines: Sequence[Line]
    seeds: Sequence[int]


def record_figure(record: Record, message: str = "") -> go.Figure:
    """Every line of an experiment's table: ours with 95% intervals, the paper's as open diamonds.

    Lines without a number in the paper are in another colour. The scales of the papers' sets and
    of the drawn world have nothing to do with each other: compare the order of the lines.
    `message` is the title, by default how many of the paper's claims reproduce.
    """
    names = list(record.columns)
    frame = framed(
        message or record_message(record),
        subtitle=f"dots: here, {len(record.seeds)} seeds, 95% intervals (red: no number in the "
        "paper); open diamonds: the paper, on its own sets",
        at_edge=True,
    )
    chart = make_subplots(
        rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.035,
        subplot_titles=[f"{name} (%)" for name in names],
    )  # fmt: skip
    chart.update_layout(frame.layout)
    for column, name in enumerate(names, start=1):
        _add_panel(chart, record, name, column)
    height = _LANE * len(record.lines) + _TALLEST_HEAD
    margin = frame.layout.margin
    chart.update_yaxes(
        tickvals=list(range(len(record.lines))),
        ticktext=[_name(line) for line in record.lines],
        range=[len(record.lines) - 0.4, -0.6],
        col=1,
    )
    chart.update_yaxes(ticks="", showline=False)
    chart.update_layout(
        height=round(height + margin.t + margin.b),
        margin={"t": margin.t + _PANEL_TITLE, "r": 16},
        title_pad_b=frame.layout.title.pad.b + _PANEL_TITLE,
        showlegend=False,
    )
    return chart


def record_message(record: Record) -> str:
    """How many of the paper's claims reproduce."""
    verdicts = [claim.verdict for claim in record.claims if not claim.is_control]
    count = sum(verdict == "reproduces" for verdict in verdicts)
    claims = "claim" if len(verdicts) == 1 else "claims"
    does = "reproduces" if count == 1 else "reproduce"
    return f"{record.source}: {count} of {len(verdicts)} {claims} {does} here"


def _name(line: Line) -> str:
    return f'<span style="color:{_colour(line)}">{line.label}</span>'


def _colour(line: Line) -> str:
    return _BASELINE if line.is_baseline else _OURS


def _add_panel(chart: go.Figure, record: Record, name: str, column: int) -> None:
    for row, line in enumerate(record.lines):
        ours = line.ours[name]
        known = ours.low == ours.low  # one seed has no interval
        arms = (ours.high - ours.value, ours.value - ours.low) if known else (0.0, 0.0)
        chart.add_scatter(
            x=[ours.value],
            y=[row],
            error_x={
                "type": "data",
                "array": [arms[0]],
                "arrayminus": [arms[1]],
                "color": _colour(line),
                "thickness": 2,
                "width": 4,
            },
            marker={"color": _colour(line), "size": 10},
            mode="markers",
            hovertemplate=f"{line.label}<br>{name}: %{{x:.1f}} ({ours.low:.1f} to "
            f"{ours.high:.1f})<extra></extra>",
            row=1,
            col=column,
        )
        published = line.published.get(name)
        if published is not None:
            chart.add_scatter(
                x=[published],
                y=[row],
                marker={"color": _PAPER, "size": 11, "symbol": "diamond-open", "line_width": 2},
                mode="markers",
                hovertemplate=f"{line.label}, the paper<br>%{{x:.2f}}<extra></extra>",
                row=1,
                col=column,
            )
