"""Tables and forest plots of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.evaluation.records import in_words
from longclip_lab.evaluation.table import UNIT, percent
from longclip_lab.views.html import render
from longclip_lab.views.static import document
from longclip_lab.views.theme import COLOURS, GREY, framed

if TYPE_CHECKING:
    from longclip_lab.evaluation import ScoreTable
    from longclip_lab.evaluation.table import Row


# --- Differences between methods that differ in one thing: a row each, a panel for each ---

_LANE, _HEAD = 34, 30
_MORE, _LESS, _OPEN = COLOURS["blue"], COLOURS["vermillion"], "#8C8C8C"

Gaps = Mapping[str, Mapping[str, Interval]]


def gaps_figure(
    gaps: Gaps, published: Mapping[str, Mapping[str, float]] | None = None, subtitle: str = ""
) -> go.Figure:
    """Differences by what was changed and by score, with their 95% intervals, in points.

    `gaps` are shares from -1 to 1, as `reproduction.verdicts.difference` gives them. An interval
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


# --- A table of a paper beside the same table of ours: dots with intervals, a panel for each ---

_RECORDS_LANE, _TALLEST_HEAD, _PANEL_TITLE = 27, 44, 26
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
    height = _RECORDS_LANE * len(record.lines) + _TALLEST_HEAD
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


# --- Scores of several models on several benchmarks as a page that stands alone ---

_WARNED = ("contaminated", "partial")


def score_table_page(table: ScoreTable, title: str = "Models by benchmarks") -> str:
    """The table as one HTML file that asks for nothing else, light or dark as the reader's system.

    Every mark leads to its note: a difference of protocol, what a paper does not state, pictures
    that a model was trained on.
    """
    kinds = {True: "Published", False: "Measured here"}
    body = render(
        "scores.html.j2",
        title=title,
        unit=UNIT,
        notes=[(note, note.startswith(_WARNED)) for note in table.notes],
        heads=[
            (benchmark, len(list(columns)), _facts(table, benchmark))
            for benchmark, columns in groupby(table.columns, key=lambda column: column[0])
        ],
        scores=[score for _, score in table.columns],
        groups=[
            (kinds[published], [_row(table, row) for row in rows])
            for published, rows in groupby(table.rows, key=lambda row: row.published)
        ],
    )
    return document(title, body, ("report", "scores"))


def _facts(table: ScoreTable, benchmark: str) -> str:
    """What the scores of a benchmark have in common: its size and how much of a text is read."""
    common = next(table.references[column] for column in table.columns if column[0] == benchmark)
    return (
        f"{in_words(common['pictures'])} pictures, {in_words(common['texts'])} texts, "
        f"{in_words(common['length'])} tokens"
    )


def _row(table: ScoreTable, row: Row) -> dict[str, Any]:
    cells: list[dict[str, Any] | None] = []
    for column in table.columns:
        if (cell := row.cells.get(column)) is None:
            cells.append(None)
            continue
        value, _, half = percent(cell.score).partition(" ")
        warned = any(table.notes[note - 1].startswith(_WARNED) for note in cell.notes)
        cells.append({"value": value, "half": half, "notes": cell.notes, "warned": warned})
    source = row.source if row.published else f"weights {row.source}"
    return {"model": row.model, "source": source, "length": in_words(row.length), "cells": cells}
