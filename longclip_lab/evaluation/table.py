"""Scores side by side, models by benchmarks, with every difference in how they came about named."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longclip_lab.data.benchmarks import PROTOCOLS
from longclip_lab.errors import LabError
from longclip_lab.evaluation.records import UNKNOWN, Record, aspects, differing, told
from longclip_lab.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("i2t R@1", "t2i R@1", "top-1")
UNIT = "Percent; ± half of the 95% bootstrap interval, which papers do not give"
Column = tuple[str, str]
"""A benchmark and one of its scores."""


@dataclass(frozen=True)
class PublishedScore:
    """A number of a paper, and which of the conditions behind it the paper states."""

    model: str
    source: str
    """The paper and the table."""
    benchmark: str
    score: str
    value: float
    """From 0 to 1."""
    stated: Mapping[str, Any] = field(default_factory=dict)
    """By the names of `comparing.aspects`; what is not here is not stated."""
    contaminated: str = ""
    """What a paper says of training on these pictures; "" if it says nothing of it."""


@dataclass(frozen=True)
class Cell:
    """A score, and the numbers (from 1) of what is to be known about it."""

    score: Interval
    notes: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """The scores of one model, read at one length, or of one line of a paper's table."""

    model: str
    source: str
    """The hash of the weights, or the paper's table."""
    length: int | None
    published: bool
    cells: dict[Column, Cell]


@dataclass(frozen=True)
class ScoreTable:
    """Models by benchmarks. A score that differs from its column in anything has a note."""

    columns: list[Column]
    rows: list[Row]
    notes: list[str]
    references: dict[Column, dict[str, Any]]
    """What a column's scores have in common unless a note says otherwise."""

    def frame(self) -> pd.DataFrame:
        """One row a score: where it is from, percent, low, high, n, and the notes as sentences."""
        import pandas as pd

        rows = [
            {
                "model": row.model,
                "kind": "published" if row.published else "measured",
                "source": row.source,
                "length": row.length,
                "benchmark": benchmark,
                "score": score,
                **_percents(row.cells[benchmark, score].score),
                "notes": "; ".join(
                    self.notes[note - 1] for note in row.cells[benchmark, score].notes
                ),
            }
            for row in self.rows
            for benchmark, score in self.columns
            if (benchmark, score) in row.cells
        ]
        frame = pd.DataFrame(rows)
        return frame.astype({"length": "Int64", "n": "Int64"})

    def to_csv(self) -> str:
        """`frame` as comma-separated values."""
        return self.frame().to_csv(index=False)

    def to_markdown(self) -> str:
        """Models by benchmarks, percent with half of the 95% interval, and the notes below."""
        head = ["model", "tokens", *(f"{name}, {score}" for name, score in self.columns)]
        lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
        for row in self.rows:
            name = f"{row.model} ({row.source})" if row.published else row.model
            cells = (self._cell_text(row.cells.get(column)) for column in self.columns)
            lines.append(_line([name, told(row.length), *cells]))
        lines += ["", f"{UNIT}.", ""]
        lines += [f"{number}. {note}" for number, note in enumerate(self.notes, start=1)]
        return "\n".join(lines).rstrip() + "\n"

    def _cell_text(self, cell: Cell | None) -> str:
        if cell is None:
            return ""
        marks = ",".join(map(str, cell.notes))
        return percent(cell.score) + (f" <sup>{marks}</sup>" if marks else "")


def score_table(
    records: Sequence[Record],
    published: Iterable[PublishedScore] = (),
    scores: Sequence[str] = SHOWN,
) -> ScoreTable:
    """Put records side by side, and published numbers of the same benchmarks with them.

    What a column stands for is what its benchmark's protocol says, and for everything else (length,
    resolution, dtype, ...) what most of its records have. Every other score gets a note with what
    is different by name, or what a paper does not state. Models that were trained on a benchmark's
    pictures get one too, and so do those of which that is not known.

    Raises LabError for no records, and if none has any of `scores`.
    """
    if not records:
        raise LabError("Expected at least one record to make a table of, got none.")
    columns = _columns(records, tuple(dict.fromkeys(scores)))
    if not columns:
        has = sorted({name for record in records for name in record.scores})
        raise LabError(f"No record has any of {', '.join(scores)}; they have {', '.join(has)}.")
    conditions = {id(record): aspects(record) for record in records}
    references = {
        (benchmark, score): _reference(
            [conditions[id(r)] for r in records if r.protocol == benchmark and score in r.scores],
            benchmark,
        )
        for benchmark, score in columns
    }
    notes = _Notes()
    rows = _measured(records, columns, conditions, references, notes)
    rows += _published(published, columns, references, notes)
    return ScoreTable(columns, rows, notes.sentences, references)


def percent(score: Interval) -> str:
    """A score in percent, with half of its interval where there is one.

    >>> percent(Interval(0.758, 0.731, 0.784, 1000)), percent(Interval(0.5, math.nan, math.nan, 0))
    ('75.8 ±2.7', '50.0')
    """
    value = f"{100 * score.value:.1f}"
    return value if math.isnan(score.low) else f"{value} ±{50 * (score.high - score.low):.1f}"


class _Notes:
    """Sentences, numbered as they come; one that comes again keeps its number."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def numbers(self, sentences: Iterable[str]) -> tuple[int, ...]:
        found = []
        for sentence in sentences:
            if sentence not in self.sentences:
                self.sentences.append(sentence)
            found.append(self.sentences.index(sentence) + 1)
        return tuple(sorted(found))


def _columns(records: Sequence[Record], scores: Sequence[str]) -> list[Column]:
    known = [name for name in PROTOCOLS if any(r.protocol == name for r in records)]
    benchmarks = dict.fromkeys([*known, *(record.protocol for record in records)])
    return [
        (name, score)
        for name in benchmarks
        for score in scores
        if any(r.protocol == name and score in r.scores for r in records)
    ]


def _reference(conditions: list[dict[str, Any]], benchmark: str) -> dict[str, Any]:
    common = {name: _commonest([one[name] for one in conditions]) for name in conditions[0]}
    common |= {"partial": False, "words left out": 0}
    if benchmark in PROTOCOLS:
        protocol = PROTOCOLS[benchmark]
        common |= {
            "split": protocol.split,
            "pictures": protocol.num_images,
            "texts": protocol.num_texts,
            "text field": protocol.text_field,
            "text processing": protocol.text_processing,
            "tie": protocol.tie,
        }
    return common


def _commonest(values: list[Any]) -> Any:
    """What most have; among equally common numbers the largest, such as the whole length."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value if isinstance(value, int) else 0))


def _measured(
    records: Sequence[Record],
    columns: list[Column],
    conditions: dict[int, dict[str, Any]],
    references: dict[Column, dict[str, Any]],
    notes: _Notes,
) -> list[Row]:
    rows: dict[tuple[Any, ...], dict[Column, Cell]] = {}
    for record in records:
        cells = {
            column: Cell(
                record.scores[column[1]],
                notes.numbers(_said(record, conditions[id(record)], references[column])),
            )
            for column in columns
            if column[0] == record.protocol and column[1] in record.scores
        }
        if not cells:
            continue
        # A second record of the same model on the same benchmark opens a line of its own.
        key = (record.model, record.model_hash, record.length)
        again = 0
        while cells.keys() & rows.get((*key, again), {}).keys():
            again += 1
        rows.setdefault((*key, again), {}).update(cells)
    ordered = sorted(rows, key=lambda key: [r.model for r in records].index(key[0]))
    return [Row(key[0], key[1], key[2], False, rows[key]) for key in ordered]


def _said(record: Record, mine: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    said = [_difference(name, mine[name], reference[name]) for name in differing(mine, reference)]
    seen = record.contamination
    if seen.get("state") == "yes":
        said.append(f"contaminated: trained on pictures of {record.protocol} ({seen['why']})")
    elif seen.get("state") == "unknown":
        said.append(
            f"contamination unknown: whether it was trained on pictures of {record.protocol} "
            f"({seen['why']})"
        )
    return said


def _difference(name: str, mine: Any, reference: Any) -> str:
    if name == "partial":
        return "partial: some of what the protocol promises was missing"
    return f"{name}: {told(mine)}, where the column has {told(reference)}"


def _published(
    scores: Iterable[PublishedScore],
    columns: list[Column],
    references: dict[Column, dict[str, Any]],
    notes: _Notes,
) -> list[Row]:
    rows: dict[tuple[str, str, Any], dict[Column, Cell]] = {}
    for one in scores:
        column = (one.benchmark, one.score)
        if column not in columns:
            continue
        mine = {name: one.stated.get(name, UNKNOWN) for name in references[column]}
        # A paper's number is of the whole set and of texts as they are, unless it says otherwise.
        mine |= {"benchmark": one.benchmark, "partial": False, "words left out": 0}
        names = [name for name in differing(mine, references[column]) if name != "data"]
        said = [
            _difference(name, mine[name], references[column][name])
            for name in names
            if mine[name] is not UNKNOWN
        ]
        unstated = [name for name in names if mine[name] is UNKNOWN]
        if unstated:
            said.append(f"not stated by the paper: {', '.join(unstated)}")
        if one.contaminated:
            said.append(f"contaminated: {one.contaminated}")
        key = (one.model, one.source, one.stated.get("length"))
        cell = Cell(Interval(one.value, math.nan, math.nan, 0), notes.numbers(said))
        rows.setdefault(key, {})[column] = cell
    return [Row(*key, True, cells) for key, cells in rows.items()]


def _percents(score: Interval) -> dict[str, Any]:
    low, high = (None if math.isnan(b) else round(100 * b, 2) for b in (score.low, score.high))
    return {"percent": round(100 * score.value, 2), "low": low, "high": high, "n": score.n or None}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
