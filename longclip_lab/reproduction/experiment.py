"""What an experiment is: arms, the scores that compare them, claims, and the paper's numbers.

All of it is data. `running.reproduce` makes the arms and judges the claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from longclip_lab.errors import LabError, suggest
from longclip_lab.reproduction.arms import Arm
from longclip_lab.reproduction.paper_tables import Label, published_table
from longclip_lab.reproduction.verdicts import Relation

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
