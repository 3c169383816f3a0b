"""The ledger: experiments run, their claims judged, one JSON record each.

S seeds, N pictures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from longclip_lab.errors import COUNT, LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.evaluation.records import commit, versions
from longclip_lab.files import atomic_write, checked_fields, read_json_object, to_json, visible
from longclip_lab.reproduction.experiment import OWN, Claim, Column, Experiment
from longclip_lab.reproduction.runs import Made, made, make
from longclip_lab.reproduction.verdicts import (
    DOES_NOT,
    NOT_TESTABLE,
    REPRODUCES,
    above_curve,
    difference,
    judge,
    overall,
    score,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


# --- The ledger: one small JSON record for every experiment that was run, and what it found ---

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
    records = [read(path) for path in visible(folder, "*.json")]
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


# --- Run an experiment: make its arms, judge its claims, write its record ---

Scale = Literal["tiny"]
ARMS, OUT = Path("runs/arms"), Path("runs/reproduce")
ASKING = 60
"""What the tests of an arm take, in optimizer steps: for the time left."""

Hits = dict[str, np.ndarray]
"""By column [S, N]."""


def reproduce(
    experiment: Experiment,
    seeds: int | None = None,
    out: Path | None = None,
    arms: Path = ARMS,
    folder: Path | None = None,
    scale: Scale = "tiny",
    progress: bool = True,
) -> LedgerRecord:
    """Make every arm of `experiment` that is not there yet, and judge its claims.

    Seeds 0, 1, ... of all arms are made one seed after the other, in `arms`; an interrupted call
    is continued by the next. `out` takes the record as NAME.json; `folder` is a ledger to write
    it to.

    Raises LabError for fewer than one seed, and as training does.
    """
    seeds = experiment.seeds if seeds is None else seeds
    COUNT.check("The number of seeds", seeds)
    done = _make_all(experiment, seeds, arms, progress)
    record = judged(experiment, done, scale)
    if out is not None:
        text = to_json(record.to_dict(), indent=1, ensure_ascii=False) + "\n"
        atomic_write(file_of(experiment.name, out), text)
    if folder is not None:
        write(record, folder)
    return record


def left_to_make(experiment: Experiment, seeds: int | None = None, arms: Path = ARMS) -> int:
    """How many arms of how many seeds are not there yet."""
    seeds = experiment.seeds if seeds is None else seeds
    return sum(
        made(entry.arm, seed, arms) is None for entry in experiment.entries for seed in range(seeds)
    )


def _make_all(
    experiment: Experiment, seeds: int, arms: Path, progress: bool
) -> dict[str, list[Made]]:
    runs = [(entry, seed) for seed in range(seeds) for entry in experiment.entries]
    costs = [entry.arm.steps() + ASKING for entry, _ in runs]
    found = [made(entry.arm, seed, arms) for entry, seed in runs]
    ready = sum(cost for cost, one in zip(costs, found, strict=True) if one is not None)
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
    bar = tqdm(
        total=sum(costs), initial=ready, desc=experiment.name, bar_format=form, disable=not progress
    )
    by_label: dict[str, list[Made]] = {entry.label: [] for entry in experiment.entries}
    with bar:
        for (entry, seed), cost, one in zip(runs, costs, found, strict=True):
            if one is None:
                bar.set_postfix_str(f"{entry.label}, seed {seed}")
                start = bar.n
                one = make(
                    entry.arm, seed, arms, lambda step, at=start: bar.update(at + step - bar.n)
                )
                bar.update(start + cost - bar.n)
            by_label[entry.label].append(one)
    return by_label


def judged(
    experiment: Experiment, done: Mapping[str, list[Made]], scale: Scale = "tiny"
) -> LedgerRecord:
    """The record of an experiment whose arms are made: scores, differences, verdicts, reasons."""
    hits = {
        label: {column.name: _hits(column, runs) for column in experiment.columns}
        for label, runs in done.items()
    }
    claims = [_judge(experiment, claim, hits) for claim in experiment.claims]
    runs = {run.key: run for of_label in done.values() for run in of_label}
    seeds = len(next(iter(done.values())))
    published = [claim.verdict for claim in claims if not claim.is_control]
    return LedgerRecord(
        name=experiment.name,
        title=experiment.title,
        source=experiment.source,
        scale=scale,
        verdict=overall(published),
        reason=summary(claims),
        columns={column.name: column.about for column in experiment.columns},
        lines=[_line(experiment, label, done[label], hits[label]) for label in done],
        claims=claims,
        notes=list(experiment.notes),
        seeds=list(range(seeds)),
        minutes=sum(run.seconds for run in runs.values()) / 60,
        cpu_minutes=sum(run.facts["cpu_seconds"] for run in runs.values()) / 60,
        command=f"longclip-lab reproduce {experiment.name} --scale {scale} --seeds {seeds}",
        commit=commit(),
        commits_of_arms=sorted({str(run.facts["commit"]) for run in runs.values()}),
        versions=versions(),
    )


def _hits(column: Column, runs: list[Made]) -> np.ndarray:
    """Hits of a column [S, N]: the mean over its tests, which are on the same pictures."""
    by_seed = []
    for run in runs:
        found = [run.hits[test] for test in column.tests]
        if len({len(one) for one in found}) != 1:
            raise LabError(f"The tests of the column {column.name!r} are on different pictures.")
        by_seed.append(np.mean(found, axis=0))
    return np.stack(by_seed)


def _judge(experiment: Experiment, claim: Claim, hits: Mapping[str, Hits]) -> ClaimRecord:
    column = experiment.column(claim.column)
    arm = hits[claim.arm]
    if isinstance(claim.against, str):
        against = [claim.against]
        found = [hits[label][claim.column] for label in claim.labels]
        # arm - against or, with two more, (arm - against) - (one - other)
        one_SN, other_SN = (
            (found[0], found[1])
            if claim.than is None
            else (found[0] - found[1], found[2] - found[3])
        )
        effect = difference(one_SN, other_SN)
        scores = (100 * found[0].mean(), 100 * found[1].mean())
    else:
        against = list(claim.against)
        curve = [hits[label] for label in against]
        effect, scores = above_curve(arm, curve, claim.along, claim.column), None
    effect = in_points(effect)
    published = experiment.published_difference(claim)
    verdict = judge(claim.relation, effect, published, scores, column.chance)
    return ClaimRecord(
        text=claim.text,
        source=claim.source,
        arm=claim.arm,
        relation=claim.relation,
        against=against if claim.than is None else claim.labels[1:],
        column=claim.column,
        published=published,
        ours=effect,
        verdict=verdict.verdict,
        reason=verdict.reason,
    )


def _line(experiment: Experiment, label: str, runs: list[Made], hits: Hits) -> LineRecord:
    return LineRecord(
        label=label,
        about=experiment.entry(label).about,
        published={c.name: experiment.published(label, c.name) for c in experiment.columns},
        ours={name: in_points(score(hits_SN)) for name, hits_SN in hits.items()},
        by_seed={name: (100 * hits_SN.mean(axis=1)).tolist() for name, hits_SN in hits.items()},
        keys=[run.key for run in runs],
        minutes=sum(run.seconds for run in runs) / 60 / len(runs),
    )


def in_points(share: Interval) -> Interval:
    """The interval in percent or points."""
    return Interval(100 * share.value, 100 * share.low, 100 * share.high, share.n)


def summary(claims: list[ClaimRecord]) -> str:
    """How many claims of each verdict, and what does not reproduce, in one sentence or two.

    >>> summary([])
    'No claim of a paper is tested.'
    """
    printed = [claim for claim in claims if not claim.is_control]
    told = []
    for verdict, words in (
        (REPRODUCES, "reproduce"), (DOES_NOT, "do not"), (NOT_TESTABLE, "cannot be tested here"),
    ):  # fmt: skip
        count = sum(claim.verdict == verdict for claim in printed)
        if count:
            told.append(f"{count} of {len(printed)} claims {words}")
    text = "; ".join(told) or "No claim of a paper is tested"
    missing = [claim for claim in printed if claim.verdict != REPRODUCES]
    if missing:
        text += ": " + "; ".join(f"“{claim.text}” ({claim.reason})" for claim in missing)
    controls = [claim for claim in claims if claim.is_control]
    if controls:
        counts = ", ".join(
            f"{sum(one.words == words for one in controls)} {words}"
            for words in dict.fromkeys(one.words for one in controls)
        )
        text += f". Controls: {counts}"
    return f"{text}."
