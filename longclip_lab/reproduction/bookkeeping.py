"""The ledger: one small JSON record for every experiment that was run, and what it found."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.files import atomic_write, checked_fields, read_json_object, to_json
from longclip_lab.reproduction.experiment import OWN
from longclip_lab.reproduction.verdicts import DOES_NOT, NOT_TESTABLE, REPRODUCES

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FOLDER = Path(__file__).parent / "ledger"
CONTROL_WORDS = {REPRODUCES: "holds", DOES_NOT: "does not hold", NOT_TESTABLE: "not decided"}
"""Verdicts in words for claims that no paper makes: there is nothing to reproduce."""


@dataclass(frozen=True)
class ClaimRecord:
    """A claim, the paper's difference, ours in points with a 95% interval, and the verdict."""

    text: str
    source: str
    arm: str
    relation: str
    against: list[str]
    column: str
    published: float | None
    ours: Interval
    verdict: str
    reason: str

    @property
    def is_control(self) -> bool:
        return self.source == OWN

    @property
    def words(self) -> str:
        """The verdict as it is shown."""
        return CONTROL_WORDS[self.verdict] if self.is_control else self.verdict


@dataclass(frozen=True)
class LineRecord:
    """A line of the table: the paper's scores and ours, in percent, by column."""

    label: str
    about: str
    published: dict[str, float | None]
    ours: dict[str, Interval]
    by_seed: dict[str, list[float]]
    keys: list[str]
    """The folders of the arms, one a seed."""
    minutes: float
    """Mean of a seed."""

    @property
    def is_baseline(self) -> bool:
        return all(value is None for value in self.published.values())


@dataclass(frozen=True)
class LedgerRecord:
    """What an experiment found, with everything needed to do it again."""

    name: str
    title: str
    source: str
    scale: str
    verdict: str
    reason: str
    columns: dict[str, str]
    lines: list[LineRecord]
    claims: list[ClaimRecord]
    notes: list[str]
    seeds: list[int]
    minutes: float
    """All arms of all seeds by the clock, whether they were made for this experiment or shared."""
    cpu_minutes: float
    """The same in processor time, which other work on the machine does not lengthen."""
    command: str
    commit: str | None
    commits_of_arms: list[str]
    versions: dict[str, str] = field(default_factory=dict)

    def line(self, label: str) -> LineRecord:
        """The line with this label. Raises LabError for an unknown one."""
        for line in self.lines:
            if line.label == label:
                return line
        known = [line.label for line in self.lines]
        raise LabError(f"{self.name} has no line {label!r}. {suggest(label, known)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers rounded to what their intervals can bear."""
        return _rounded(asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LedgerRecord:
        """The inverse of `to_dict`. Raises LabError for missing or unknown fields."""
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            found = set(values) if isinstance(values, dict) else set()
            raise LabError(
                f"Not a ledger record: missing fields {sorted(known - found)}, unknown fields "
                f"{sorted(found - known)}."
            )
        lines = [
            LineRecord(**{**line, "ours": {k: _interval(v) for k, v in line["ours"].items()}})
            for line in values["lines"]
        ]
        claims = [ClaimRecord(**{**claim, "ours": _interval(claim["ours"])})
                  for claim in values["claims"]]  # fmt: skip
        return cls(**{**values, "lines": lines, "claims": claims})

    def table(self) -> pd.DataFrame:
        """A line each: the paper's scores and ours, in percent, and half the 95% interval."""
        import pandas as pd

        rows = {}
        for line in self.lines:
            row: dict[tuple[str, str], Any] = {}
            for column in self.columns:
                ours = line.ours[column]
                row[column, "paper"] = line.published[column]
                row[column, "ours"] = round(ours.value, 1)
                row[column, "±"] = round((ours.high - ours.low) / 2, 1)
            rows[line.label] = row
        return pd.DataFrame.from_dict(rows, orient="index")

    def plot(self, message: str = "") -> go.Figure:
        """The table as a figure (`views.record_figure`)."""
        from longclip_lab.views import record_figure

        return record_figure(self, message)

    def findings(self) -> pd.DataFrame:
        """A claim each: what is said, the paper's points and ours, the verdict and its reason."""
        import pandas as pd

        return pd.DataFrame([_finding(self, claim) for claim in self.claims])


def _finding(record: LedgerRecord, claim: ClaimRecord) -> dict[str, Any]:
    return {
        "experiment": record.name,
        "claim": claim.text,
        "source": claim.source,
        "column": claim.column,
        "paper": claim.published,
        "ours": claim.ours.value,
        "low": claim.ours.low,
        "high": claim.ours.high,
        "seeds": len(record.seeds),
        "verdict": claim.words,
        "reason": claim.reason,
    }


def file_of(name: str, folder: Path = FOLDER) -> Path:
    """Where the record of an experiment is: "lotlip/table3" in lotlip-table3.json."""
    return Path(folder) / f"{name.replace('/', '-')}.json"


def write(record: LedgerRecord, folder: Path = FOLDER) -> bool:
    """Put a record into the ledger; False, and nothing done, if the one there has more seeds."""
    there = read_all(folder).get(record.name)
    if there is not None and len(there.seeds) > len(record.seeds):
        return False
    text = to_json(record.to_dict(), indent=1, ensure_ascii=False) + "\n"
    atomic_write(file_of(record.name, folder), text)
    return True


def is_writable(folder: Path = FOLDER) -> bool:
    """Whether this library runs from a checkout whose ledger can be written."""
    checkout = (folder.parents[2] / "pyproject.toml").exists()
    return checkout and os.access(folder if folder.exists() else folder.parent, os.W_OK)


def read(path: Path) -> LedgerRecord:
    """A record from its file. Raises LabError for a file that holds none."""
    if not Path(path).exists():
        raise LabError(f"There is no record {path}.")
    try:
        record = LedgerRecord.from_dict(read_json_object(path))
        return checked_fields(record, "Not a ledger record")
    except (LabError, TypeError, KeyError, AttributeError) as error:
        raise LabError(f"{path} holds no ledger record: {error}") from None


def read_all(folder: Path = FOLDER) -> dict[str, LedgerRecord]:
    """Every record by its experiment's name."""
    records = [read(path) for path in sorted(Path(folder).glob("*.json"))]
    return {record.name: record for record in records}


def record_of(name: str, folder: Path = FOLDER) -> LedgerRecord:
    """The record of one experiment. Raises LabError if there is none."""
    records = read_all(folder)
    if name not in records:
        raise LabError(f"The ledger has no record of {name!r}. {suggest(name, records)}")
    return records[name]


def ledger(folder: Path = FOLDER) -> pd.DataFrame:
    """All claims that were tested, a row each, as a DataFrame.

    Columns: experiment, claim, source, column, paper and ours (points, with low and high of the
    95% interval), seeds, verdict, reason. `record_of(name)` gives all of one experiment.
    """
    import pandas as pd

    rows = [
        _finding(record, claim) for record in read_all(folder).values() for claim in record.claims
    ]
    columns = ["experiment", "claim", "source", "column", "paper", "ours", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=[*columns, "verdict", "reason"])


def _interval(values: dict[str, Any]) -> Interval:
    return Interval.from_dict(values)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return None if value != value else round(value, 3)
    return value
