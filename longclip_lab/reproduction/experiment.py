"""What an experiment is; the papers' numbers as data.

The files in `tables/` hold what is printed, digit for digit; `notes` say what is odd about it.
Figures whose numbers are not printed are here only with what the text says of them.

Only what a paper states of its protocol is stated; what it does not say is left out, not guessed.

All of it is data. `bookkeeping.reproduce` makes the arms and judges the claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation.table import PublishedScore
from longclip_lab.files import parse_json
from longclip_lab.reproduction.arms import Arm
from longclip_lab.reproduction.verdicts import Relation

# --- The papers' tables as data, each with where it stands ---

Label = str | int | bool | None


@dataclass(frozen=True)
class PublishedRow:
    """One line: what it is about, and its numbers by column."""

    labels: dict[str, Label]
    values: dict[str, float]


@dataclass(frozen=True)
class PublishedTable:
    """One table of a paper; `name` is what experiments call it, such as "lotlip/table3"."""

    name: str
    paper: str
    table: str
    title: str
    unit: str
    rows: list[PublishedRow]
    notes: list[str]

    @property
    def source(self) -> str:
        """The paper and the table's number there."""
        return f"{self.paper}, {self.table}"

    def value(self, column: str, **labels: Label) -> float:
        """The number under `column` in the one line with these labels (blanks as underscores).

        Raises LabError for a column that the table does not have, and for labels that fit no line
        or lines with different numbers.

        >>> published_table("lotlip/table3").value("ImageNet", corner_tokens=2, mask=True)
        50.34
        """
        wanted = {name.replace("_", " "): label for name, label in labels.items()}
        fitting = [row for row in self.rows if wanted.items() <= row.labels.items()]
        if fitting and column not in fitting[0].values:
            raise LabError(
                f"{self.name} has no column {column!r}. {suggest(column, fitting[0].values)}"
            )
        found = {row.values[column] for row in fitting}
        if len(found) != 1:
            lines = "; ".join(
                ", ".join(f"{k} {v}" for k, v in row.labels.items()) for row in self.rows
            )
            raise LabError(
                f"{self.name}: {len(fitting)} lines have {wanted}, one is needed. The lines: "
                f"{lines}."
            )
        return found.pop()

    def to_frame(self) -> Any:
        """A DataFrame: the labels, then the columns as printed."""
        import pandas as pd

        return pd.DataFrame([{**row.labels, **row.values} for row in self.rows])


@dataclass(frozen=True)
class Statement:
    """A number in a paper's running text, and what it says."""

    name: str
    where: str
    says: str
    value: float


@cache
def published_tables() -> dict[str, PublishedTable]:
    """Every transcribed table by name."""
    tables = [_table(content) for content in _contents() if "rows" in content]
    # By paper, then by number: "lotlip/table10" after "lotlip/table9".
    tables.sort(key=lambda table: (table.name.rstrip("0123456789"), len(table.name), table.name))
    return {table.name: table for table in tables}


def published_table(name: str) -> PublishedTable:
    """One table by name. Raises LabError for an unknown name, with near ones.

    >>> published_table("lotlip/table2").source
    'LoTLIP (Wu et al., NeurIPS 2024), Table 2'
    """
    tables = published_tables()
    if name not in tables:
        raise LabError(f"No table {name!r} is transcribed. {suggest(name, tables)}")
    return tables[name]


@cache
def published_statements() -> dict[str, Statement]:
    """What LoTLIP's text says in numbers, by name."""
    found = [Statement(**one) for content in _contents() for one in content.get("statements", [])]
    return {statement.name: statement for statement in found}


def _contents() -> list[dict[str, Any]]:
    folder = files("longclip_lab.reproduction") / "tables"
    paths = sorted((path for path in folder.iterdir()), key=lambda path: path.name)
    return [
        parse_json(path.read_text("utf-8"), path.name)
        for path in paths
        if path.name.endswith(".json")
    ]


def _table(content: dict[str, Any]) -> PublishedTable:
    return PublishedTable(
        content["name"],
        content["paper"],
        content["table"],
        content["title"],
        content["unit"],
        [
            PublishedRow(
                dict(zip(content["labels"], labels, strict=True)),
                dict(zip(content["columns"], values, strict=True)),
            )
            for labels, values in content["rows"]
        ],
        content["notes"],
    )


# --- Curves that others published, as data, each with where it stands ---


@dataclass(frozen=True)
class PublishedCurve:
    """Scores after so many content tokens (start and end not counted), in percent.

    The last one is the score with all tokens that the model holds. `note` says what the source
    leaves open.
    """

    name: str
    source: str
    scores: dict[int, float]
    note: str

    @property
    def shares(self) -> dict[int, float]:
        """Each score as a share of the last one, from 0 to 1."""
        last = list(self.scores.values())[-1]
        return {tokens: score / last for tokens, score in self.scores.items()}

    def first_reaching(self, share: float) -> int | None:
        """The first published cut with at least this share of the last score, short of it.

        None if only the last one has it.

        >>> CLIP_ON_URBAN.first_reaching(0.5), CLIP_ON_URBAN.first_reaching(0.95)
        (29, None)
        """
        *cuts, _ = self.shares.items()
        return next((tokens for tokens, reached in cuts if reached >= share), None)


CLIP_ON_URBAN = PublishedCurve(
    name="CLIP on Urban",
    source="CLIP: github.com/beichenzbc/Long-CLIP/issues/71; all tokens: supplement, Table 1",
    scores={9: 11.7, 19: 29.3, 29: 42.2, 39: 51.3, 49: 57.0, 59: 61.6, 75: 68.1},
    note="Image to text, R@1. Tokens cut and the end token put at the cut; index n of the script "
    "keeps the start token and n - 1 content tokens. The issue names neither the model nor which "
    "Urban set; the last score is ViT-B/16 on Urban-1k (ViT-L/14: 68.7).",
)


# --- The papers' tables as scores on named benchmarks, to stand beside what is measured here ---

LOTLIP_SETS: dict[str, tuple[str, dict[str, Any]]] = {
    # Counts: LoTLIP, Table 1.
    "DCI": ("dci-full", {"pictures": 7805, "texts": 7805}),
    "IIW": ("iiw", {"pictures": 612, "texts": 612}),
    "ShareGPT4V-1k": ("sharegpt4v-1k", {"pictures": 1000, "texts": 1000}),
    "ShareGPT4V-10k": ("sharegpt4v-10k", {"pictures": 10_000, "texts": 10_000}),
    "MSCOCO": ("coco-karpathy-5k", {"pictures": 5000, "texts": 25_000}),
    "Flickr30k": ("flickr30k-1k", {"pictures": 1000, "texts": 5000}),
}
"""What LoTLIP's columns are called, the benchmark here, and what the paper says of it."""

LENGTHS = {"LoTLIP": 128}
"""LoTLIP, implementation details; the lengths of the other models in its tables are not stated."""


CONTAMINATED = {
    ("Long-CLIP", "sharegpt4v-10k"): "Long-CLIP was fine-tuned on ShareGPT4V except ShareGPT4V-1k "
    "(LoTLIP, footnote of Table 4)",
}


def published_scores() -> list[PublishedScore]:
    """Every number of the transcribed tables that compare models on benchmarks of the lab.

    LoTLIP's Tables 4 and 5, and Tables 1 and 2 of Long-CLIP's supplement. The ablations, of models
    that nobody else has, are not among them.
    """
    return [*_lotlip("lotlip/table4"), *_lotlip("lotlip/table5"), *_urban()]


def _lotlip(name: str) -> Iterator[PublishedScore]:
    table = published_table(name)
    for row in table.rows:
        model = str(row.labels["model"])
        data = "+".join(str(row.labels[kind]) for kind in ("short texts", "long texts")
                        if row.labels[kind])  # fmt: skip
        for column, value in row.values.items():
            benchmark, score, stated = _of_column(column)
            if benchmark:
                length = {"length": LENGTHS[model]} if model in LENGTHS else {}
                trained = CONTAMINATED.get((model, benchmark), "")
                yield _score(
                    f"{model}, {data}", table, benchmark, score, value, stated | length, trained
                )


def _of_column(column: str) -> tuple[str, str, dict[str, Any]]:
    """Benchmark, score and stated conditions of a column such as "DCI T2I", "MSCOCO I2T R@5"."""
    if column == "ImageNet":
        return "imagenet", "top-1", {}
    dataset, _, rest = column.partition(" ")
    if dataset not in LOTLIP_SETS:
        return "", "", {}
    benchmark, stated = LOTLIP_SETS[dataset]
    way, _, k = rest.partition(" ")
    return benchmark, f"{way.lower()} {k or 'R@1'}", stated


def _urban() -> Iterator[PublishedScore]:
    places = {"longclip/supplement-table1": "urban1k", "longclip/supplement-table2": "urban200"}
    for name, benchmark in places.items():
        table = published_table(name)
        for row in table.rows:
            model = str(row.labels["model"])
            detail = row.labels.get("architecture") or row.labels.get("training data")
            for column, value in row.values.items():
                # The supplement's text gives Urban-1k's size and says that cosines are ranked.
                size = {"pictures": 1000, "texts": 1000} if benchmark == "urban1k" else {}
                stated = {"similarity": "pooled", **size}
                score = f"{column.lower()} R@1"
                yield _score(f"{model}, {detail}", table, benchmark, score, value, stated)


def _score(
    model: str,
    table: PublishedTable,
    benchmark: str,
    score: str,
    value: float,
    stated: dict[str, Any],
    contaminated: str = "",
) -> PublishedScore:
    return PublishedScore(model, table.source, benchmark, score, value / 100, stated, contaminated)


# --- What an experiment is: arms, the scores that compare them, claims, the paper's numbers ---

OWN = "this library"
"""The source of a claim that no paper makes: a control."""


@dataclass(frozen=True)
class Column:
    """A score in percent: the mean over tests on the same pictures.

    `table` and `printed` name the paper's table and those of its columns whose mean stands beside
    ours. `chance` is what guessing gets.
    """

    name: str
    about: str
    tests: tuple[str, ...]
    table: str | None = None
    printed: tuple[str, ...] = ()
    chance: float = 0.1

    def published(self, labels: Mapping[str, Label]) -> float | None:
        """The paper's number in the line with these labels."""
        if self.table is None:
            return None
        table = published_table(self.table)
        return fmean(table.value(column, **labels) for column in self.printed)


@dataclass(frozen=True)
class Entry:
    """A line of our table: an arm, its label, and the paper's line that it stands beside.

    Without `printed` it is a baseline of ours, which the paper does not have.
    """

    label: str
    arm: Arm
    printed: Mapping[str, Label] | None = None
    about: str = ""


@dataclass(frozen=True)
class Claim:
    """`arm` is `relation` than `against` in `column`.

    With several labels in `against`, these are a sweep, and the question is whether `arm` lies
    above the line through them in the plane of the columns `along` and `column`. With `than`, two
    other labels, the question is about the difference of two differences: whether what lies between
    `arm` and `against` is `relation` than what lies between these two. `source` says where the
    claim is made; `OWN` marks a control.
    """

    text: str
    arm: str
    relation: Relation
    against: str | tuple[str, ...]
    column: str
    source: str = OWN
    along: str | None = None
    than: tuple[str, str] | None = None

    @property
    def labels(self) -> list[str]:
        """All lines that the claim is about."""
        against = (self.against,) if isinstance(self.against, str) else self.against
        return [self.arm, *against, *(self.than or ())]

    @property
    def is_control(self) -> bool:
        return self.source == OWN


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper, to be filled on the drawn world.

    `seeds` is how many it takes by default: five where an effect is small. `notes` say what
    stands for what, and what the scale cannot show.

    Raises LabError for claims about labels or columns that are not there.
    """

    name: str
    title: str
    source: str
    columns: Sequence[Column]
    entries: Sequence[Entry]
    claims: Sequence[Claim]
    seeds: int = 3
    notes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        labels = [entry.label for entry in self.entries]
        if len(set(labels)) < len(labels):
            raise LabError(f"{self.name}: two lines have the same label.")
        for claim in self.claims:
            for label in claim.labels:
                self.entry(label)
            for column in (claim.column, *filter(None, [claim.along])):
                self.column(column)
            if not isinstance(claim.against, str) and claim.along is None:
                raise LabError(f"{self.name}: a claim about a sweep says along which column.")

    def entry(self, label: str) -> Entry:
        """The line with this label. Raises LabError for an unknown one."""
        for entry in self.entries:
            if entry.label == label:
                return entry
        known = [entry.label for entry in self.entries]
        raise LabError(f"{self.name} has no line {label!r}. {suggest(label, known)}")

    def column(self, name: str) -> Column:
        """The column of this name. Raises LabError for an unknown one."""
        for column in self.columns:
            if column.name == name:
                return column
        known = [column.name for column in self.columns]
        raise LabError(f"{self.name} has no column {name!r}. {suggest(name, known)}")

    def published(self, label: str, column: str) -> float | None:
        """The paper's number for a line and a column; None for baselines and unprinted figures."""
        printed = self.entry(label).printed
        return None if printed is None else self.column(column).published(printed)

    def published_difference(self, claim: Claim) -> float | None:
        """The paper's difference in points, or difference of differences, for a claim."""
        if not isinstance(claim.against, str):
            return None
        values = [self.published(label, claim.column) for label in claim.labels]
        if None in values:
            return None
        return sum(sign * value for sign, value in zip((1, -1, -1, 1), values, strict=False))
