"""Tables and forest plots of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.evaluation.records import in_words
from longclip_lab.evaluation.table import UNIT, percent
from longclip_lab.views.html import render
from longclip_lab.views.static import document
from longclip_lab.views.theme import COLOURS, GREY, framed, scaled, whiskers

if TYPE_CHECKING:
    from longclip_lab.evaluation import ScoreTable
    from longclip_lab.evaluation.table import Row


# --- Dots with intervals, a row for each line and a panel for each score ---

_MORE, _LESS, _OPEN = COLOURS["blue"], COLOURS["vermillion"], "#8C8C8C"

Gaps = Mapping[str, Mapping[str, Interval]]


class Dot(NamedTuple):
    """A score here, in the panel's unit, and the paper's, if it has one; how both are shown."""

    ours: Interval
    paper: float | None
    colour: str
    symbol: str
    form: str


def _forest(
    frame: go.Figure,
    rows: Mapping[str, Sequence[Dot]],
    labels: Sequence[str],
    titles: Sequence[str],
    lane: int,
    spacing: float,
) -> go.Figure:
    """A panel for each of `titles`, a lane for each row; the paper's number as an open diamond."""
    chart = make_subplots(
        rows=1, cols=len(titles), shared_yaxes=True, horizontal_spacing=spacing,
        subplot_titles=list(titles),
    )  # fmt: skip
    chart.update_layout(frame.layout)
    for column in range(1, len(titles) + 1):
        for row, (what, dots) in enumerate(rows.items()):
            dot = dots[column - 1]
            value, low, high = (f"{one:{dot.form}}" for one in (dot.ours.value, dot.ours.low,
                                                                 dot.ours.high))  # fmt: skip
            chart.add_scatter(
                x=[dot.ours.value], y=[row], mode="markers", error_x=whiskers(dot.colour, dot.ours),
                marker={"color": dot.colour, "size": 10, "symbol": dot.symbol,
                        "line": {"width": 2, "color": dot.colour}},
                hovertemplate=f"{what}<br>{value} ({low} to {high})<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
            if dot.paper is not None:
                chart.add_scatter(
                    x=[dot.paper], y=[row], mode="markers",
                    marker={"color": GREY, "size": 11, "symbol": "diamond-open", "line_width": 2},
                    hovertemplate=f"{what}, the paper<br>{dot.paper:.2f}<extra></extra>",
                    row=1, col=column,
                )  # fmt: skip
    margin = frame.layout.margin
    chart.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=list(labels),
        range=[len(rows) - 0.4, -0.6], ticks="", showline=False, col=1,
    )  # fmt: skip
    chart.update_yaxes(ticks="", showline=False)
    chart.update_layout(
        height=round(lane * len(rows) + _HEAD + margin.t + margin.b),
        margin={"t": margin.t + _HEAD, "r": 16},
        title_pad_b=frame.layout.title.pad.b + _HEAD,
        showlegend=False,
    )
    return chart


_HEAD = 30


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
    rows = {}
    for what, found in gaps.items():
        rows[what] = []
        for name, gap in ((name, found[name]) for name in names):
            colour = _MORE if gap.low > 0 else _LESS if gap.high < 0 else _OPEN
            symbol = "circle-open" if colour == _OPEN else "circle"
            paper = (published or {}).get(what, {}).get(name)
            rows[what].append(Dot(scaled(gap), paper, colour, symbol, "+.1f"))
    frame = framed(gaps_message(gaps), subtitle=subtitle, at_edge=True)
    titles = [f"{name} (points)" for name in names]
    chart = _forest(frame, rows, list(gaps), titles, lane=34, spacing=0.03)
    # After the dots: plotly draws no line into an empty panel.
    zero = {"color": GREY, "width": 1.5, "dash": "dot"}
    chart.add_vline(x=0, line=zero, layer="below")
    chart.update_annotations(font_size=14)
    chart.update_yaxes(showgrid=False)
    chart.update_layout(margin_b=40)
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


def record_figure(record: Any, message: str = "") -> go.Figure:
    """Every line of an experiment's table: ours with 95% intervals, the paper's as open diamonds.

    `record` is a `reproduction.bookkeeping.LedgerRecord`. Lines without a number in the paper are
    in another colour. The scales of the papers' sets and
    of the drawn world have nothing to do with each other: compare the order of the lines.
    `message` is the title, by default how many of the paper's claims reproduce.
    """
    names, rows, labels = list(record.columns), {}, []
    for line in record.lines:
        colour = _LESS if line.is_baseline else _MORE
        rows[line.label] = [
            Dot(line.ours[name], line.published.get(name), colour, "circle", ".1f")
            for name in names
        ]
        labels.append(f'<span style="color:{colour}">{line.label}</span>')
    frame = framed(
        message or record_message(record),
        subtitle=f"dots: here, {len(record.seeds)} seeds, 95% intervals (red: no number in the "
        "paper); open diamonds: the paper, on its own sets",
        at_edge=True,
    )
    titles = [f"{name} (%)" for name in names]
    return _forest(frame, rows, labels, titles, lane=27, spacing=0.035)


def record_message(record: Any) -> str:
    """How many of the paper's claims reproduce."""
    verdicts = [claim.verdict for claim in record.claims if not claim.is_control]
    count = sum(verdict == "reproduces" for verdict in verdicts)
    claims = "claim" if len(verdicts) == 1 else "claims"
    does = "reproduces" if count == 1 else "reproduce"
    return f"{record.source}: {count} of {len(verdicts)} {claims} {does} here"


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
