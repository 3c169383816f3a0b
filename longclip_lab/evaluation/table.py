"""Scores side by side, models by benchmarks, with every difference in how they came about named."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longclip_lab.data.benchmarks import PROTOCOLS
from longclip_lab.errors import LabError
from longclip_lab.evaluation.records import UNKNOWN, Record, aspects, differing, in_words
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

        rows = []
        for row in self.rows:
            for column in self.columns:
                if (cell := row.cells.get(column)) is None:
                    continue
                score = cell.score
                # A paper gives no interval and no count: both are missing values in the frame.
                bounds = (None if math.isnan(b) else 100 * b for b in (score.low, score.high))
                low, high = (None if b is None else round(b, 2) for b in bounds)
                rows.append(
                    {
                        "model": row.model,
                        "kind": "published" if row.published else "measured",
                        "source": row.source,
                        "length": row.length,
                        "benchmark": column[0],
                        "score": column[1],
                        "percent": round(100 * score.value, 2),
                        "low": low,
                        "high": high,
                        "n": score.n or None,
                        "notes": "; ".join(self.notes[note - 1] for note in cell.notes),
                    }
                )
        frame = pd.DataFrame(rows)
        return frame.astype({"length": "Int64", "n": "Int64"})

    def to_csv(self) -> str:
        """`frame` as comma-separated values."""
        return self.frame().to_csv(index=False)

    def to_markdown(self) -> str:
        """Models by benchmarks, percent with half of the 95% interval, and the notes below."""
        lines = [["model", "tokens", *(f"{name}, {score}" for name, score in self.columns)]]
        lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
        for row in self.rows:
            name = f"{row.model} ({row.source})" if row.published else row.model
            lines.append([name, in_words(row.length)])
            for column in self.columns:
                cell = row.cells.get(column)
                marks = ",".join(map(str, cell.notes)) if cell else ""
                value = percent(cell.score) if cell else ""
                lines[-1].append(value + (f" <sup>{marks}</sup>" if marks else ""))
        table = [
            "| " + " | ".join(one.replace("|", "\\|") for one in line) + " |" for line in lines
        ]
        notes = [f"{number}. {note}" for number, note in enumerate(self.notes, start=1)]
        return "\n".join([*table, "", f"{UNIT}.", "", *notes]).rstrip() + "\n"


def score_table(
    records: Sequence[Record],
    published: Iterable[PublishedScore] = (),
    scores: Sequence[str] = SHOWN,
) -> ScoreTable:
    """Put records side by side, and published numbers of the same benchmarks with them.

    What a column stands for is what its benchmark's protocol says, and for everything else (length,
    resolution, dtype, ...) what most of its records have. Every other score gets a note with what
    is different by name, or what a paper does not state. Models that were trained on a benchmark's
    images get one too, and so do those of which that is not known.

    Raises LabError for no records, and if none has any of `scores`.
    """
    if not records:
        raise LabError("Expected at least one record to make a table of, got none.")
    shown = tuple(dict.fromkeys(scores))
    # Benchmarks in the order of the protocols, then those of your own as they come.
    names = [name for name in PROTOCOLS if any(record.protocol == name for record in records)]
    names = list(dict.fromkeys([*names, *(record.protocol for record in records)]))
    by_column: dict[Column, list[dict[str, Any]]] = {
        (b, score): [] for b in names for score in shown
    }
    # Once a record: they are compared with every column that the record is in.
    conditions = [aspects(record) for record in records]
    for record, mine in zip(records, conditions, strict=True):
        for score in record.scores.keys() & set(shown):
            by_column[record.protocol, score].append(mine)
    references = {
        column: _reference(found, column[0]) for column, found in by_column.items() if found
    }
    if not references:
        has = sorted({name for record in records for name in record.scores})
        raise LabError(f"No record has any of {', '.join(scores)}; they have {', '.join(has)}.")

    notes: list[str] = []

    def cell(score: Interval, sentences: list[str]) -> Cell:
        # A sentence that comes again keeps its number.
        notes.extend(one for one in dict.fromkeys(sentences) if one not in notes)
        return Cell(score, tuple(sorted(notes.index(one) + 1 for one in sentences)))

    # A line is a model with its weights at a length: two models may share a name.
    measured: dict[tuple[Any, ...], dict[Column, Cell]] = {}
    for record, mine in zip(records, conditions, strict=True):
        cells = {}
        for column, reference in references.items():
            if column[0] == record.protocol and column[1] in record.scores:
                said = [_difference(one, mine, reference) for one in differing(mine, reference)]
                cells[column] = cell(record.scores[column[1]], said + _contaminated(record))
        if not cells:
            continue
        # A second record of the same model on the same benchmark opens a line of its own.
        key, again = (record.model, record.model_hash, record.length), 0
        while cells.keys() & measured.get((*key, again), {}).keys():
            again += 1
        measured.setdefault((*key, again), {}).update(cells)
    # Models in the order of the records, each with all its lengths together.
    models = [record.model for record in records]
    ordered = sorted(measured, key=lambda key: models.index(key[0]))
    rows = [Row(*key[:3], False, measured[key]) for key in ordered]

    of_papers: dict[tuple[str, str, Any], dict[Column, Cell]] = {}
    for one in published:
        column = (one.benchmark, one.score)
        if column in references:
            key = (one.model, one.source, one.stated.get("length"))
            score = Interval(one.value, math.nan, math.nan, 0)
            of_papers.setdefault(key, {})[column] = cell(score, _stated(one, references[column]))
    rows += [Row(*key, True, cells) for key, cells in of_papers.items()]
    return ScoreTable(list(references), rows, notes, references)


def percent(score: Interval) -> str:
    """A score in percent, with half of its interval where there is one.

    >>> percent(Interval(0.758, 0.731, 0.784, 1000)), percent(Interval(0.5, math.nan, math.nan, 0))
    ('75.8 ±2.7', '50.0')
    """
    value = f"{100 * score.value:.1f}"
    return value if math.isnan(score.low) else f"{value} ±{50 * (score.high - score.low):.1f}"


def _reference(conditions: list[dict[str, Any]], benchmark: str) -> dict[str, Any]:
    """What most scores of a column share; what the protocol says, where it does."""
    common = {name: _commonest([one[name] for one in conditions]) for name in conditions[0]}
    # A column stands for the whole benchmark, even if nobody has scored all of it.
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


def _difference(name: str, mine: dict[str, Any], reference: dict[str, Any]) -> str:
    if name == "partial":
        return "partial: some of what the protocol promises was missing"
    return f"{name}: {in_words(mine[name])}, where the column has {in_words(reference[name])}"


def _contaminated(record: Record) -> list[str]:
    heads = {
        "yes": "contaminated: trained",
        "unknown": "contamination unknown: whether it was trained",
    }
    head = heads.get(record.contamination.get("state", ""))
    why = record.contamination.get("why")
    return [f"{head} on pictures of {record.protocol} ({why})"] if head else []


def _stated(one: PublishedScore, reference: dict[str, Any]) -> list[str]:
    """What differs of a paper's number by what the paper says, and what it does not say."""
    mine = {name: one.stated.get(name, UNKNOWN) for name in reference}
    # A paper's number is of the whole set and of texts as they are, unless it says otherwise.
    mine |= {"benchmark": one.benchmark, "partial": False, "words left out": 0}
    # No paper states the hash of its images.
    names = [name for name in differing(mine, reference) if name != "data"]
    said = [_difference(name, mine, reference) for name in names if mine[name] is not UNKNOWN]
    unstated = [name for name in names if mine[name] is UNKNOWN]
    if unstated:
        said.append(f"not stated by the paper: {', '.join(unstated)}")
    if one.contaminated:
        said.append(f"contaminated: {one.contaminated}")
    return said
