"""Scores of several models on several benchmarks as a page that stands alone."""

from __future__ import annotations

import html
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any

from longclip_lab.evaluation.comparing import told
from longclip_lab.evaluation.comparison import UNIT, percent

if TYPE_CHECKING:
    from longclip_lab.evaluation import ScoreTable

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
main {padding-top: 36px; padding-bottom: 60px; max-width: none; width: fit-content; min-width: 0}
h1 {font-size: 34px; line-height: 1.15; margin: 0 0 14px}
.scores-table {width: auto}
.scores-table td {white-space: nowrap}
.scores-table small {display: inline; margin-left: .3em}
.scores-table sup a {text-decoration: none; font-weight: 600; padding: 0 .12em}
.scores-table .warned sup a {color: var(--warm)}
.scores-table thead tr + tr th:first-child {text-align: right}
.scores-table tbody th small {display: block; margin-left: 0; font-weight: 400; color: var(--soft);
  font-size: 12.5px}
.column-facts {font-weight: 400; display: block; font-size: 12px}
ol.notes {max-width: 62em; font-size: 15px; line-height: 1.5; padding-left: 2em}
ol.notes li {margin-bottom: 5px}
ol.notes li:target {background: var(--warm-tint)}
ol.notes .warned {color: var(--warm); font-weight: 600}
"""
_WARNED = ("contaminated", "partial")


def score_table_page(table: ScoreTable, title: str = "Models by benchmarks") -> str:
    """The table as one HTML file that asks for nothing else, light or dark as the reader's system.

    Every mark leads to its note: a difference of protocol, what a paper does not state, pictures
    that a model was trained on.
    """
    styles = (files("longclip_lab.views") / "styles" / "report.css").read_text("utf-8")
    notes = "".join(
        f'<li id="note-{number}"{_warned_class([note])}>{html.escape(note)}</li>'
        for number, note in enumerate(table.notes, start=1)
    )
    told_of_notes = (
        "<p>A number at a score leads to what is different about it. Scores without one "
        "were measured in the same way as the others of their column that have none.</p>"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>
{styles}{_STYLE}</style>
</head>
<body>
<main><h1>{html.escape(title)}</h1>{told_of_notes}{_table(table)}
<ol class="notes">{notes}</ol></main>
</body>
</html>
"""


def _table(table: ScoreTable) -> str:
    head = "".join(
        f'<th scope="colgroup" colspan="{len(list(columns))}">{html.escape(benchmark)}'
        f'<span class="column-facts">{html.escape(_facts(table, benchmark))}</span></th>'
        for benchmark, columns in groupby(table.columns, key=lambda column: column[0])
    )
    scores = "".join(f'<th scope="col">{html.escape(score)}</th>' for _, score in table.columns)
    body = ""
    for published, rows in groupby(table.rows, key=lambda row: row.published):
        kind = "Published" if published else "Measured here"
        body += (
            f'<tr class="group"><th scope="rowgroup" colspan="{len(table.columns) + 2}">{kind}'
            "</th></tr>" + "".join(_row(table, row) for row in rows)
        )
    return (
        f'<div class="scroll card"><table class="scores-table"><caption>{html.escape(UNIT)}.'
        f'</caption><thead><tr><th rowspan="2" scope="col">model</th>'
        f'<th rowspan="2" scope="col">tokens</th>{head}</tr><tr>{scores}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _facts(table: ScoreTable, benchmark: str) -> str:
    """What the scores of a benchmark have in common: its size and how much of a text is read."""
    common = next(table.references[column] for column in table.columns if column[0] == benchmark)
    return (
        f"{told(common['pictures'])} pictures, {told(common['texts'])} texts, "
        f"{told(common['length'])} tokens"
    )


def _row(table: ScoreTable, row: Any) -> str:
    cells = ""
    for column in table.columns:
        cell = row.cells.get(column)
        if cell is None:
            cells += "<td></td>"
            continue
        value, _, half = percent(cell.score).partition(" ")
        marks = ", ".join(
            f'<a href="#note-{note}" title="{html.escape(table.notes[note - 1])}">{note}</a>'
            for note in cell.notes
        )
        interval = f"<small>{half}</small>" if half else ""
        sup = f" <sup>{marks}</sup>" if marks else ""
        noted = [table.notes[note - 1] for note in cell.notes]
        cells += f"<td{_warned_class(noted)}><strong>{value}</strong>{interval}{sup}</td>"
    source = row.source if row.published else f"weights {row.source}"
    return (
        f'<tr><th scope="row">{html.escape(row.model)}<small>{html.escape(source)}</small></th>'
        f"<td>{told(row.length)}</td>{cells}</tr>"
    )


def _warned_class(notes: list[str]) -> str:
    return ' class="warned"' if any(note.startswith(_WARNED) for note in notes) else ""
