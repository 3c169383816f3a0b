"""Run an experiment: make its arms, judge its claims, write its record.

S seeds, N pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from longclip_lab.errors import COUNT, LabError
from longclip_lab.evaluation import Interval
from longclip_lab.evaluation.records import commit, versions
from longclip_lab.files import atomic_write, to_json
from longclip_lab.reproduction import bookkeeping as books
from longclip_lab.reproduction.experiment import Claim, Column, Experiment
from longclip_lab.reproduction.making import Made, made, make
from longclip_lab.reproduction.paired import above_curve, difference, score
from longclip_lab.reproduction.verdicts import DOES_NOT, NOT_TESTABLE, REPRODUCES, judge, overall

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
) -> books.LedgerRecord:
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
        atomic_write(books.file_of(experiment.name, out), text)
    if folder is not None:
        books.write(record, folder)
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
) -> books.LedgerRecord:
    """The record of an experiment whose arms are made: scores, differences, verdicts, reasons."""
    hits = {
        label: {column.name: _hits(column, runs) for column in experiment.columns}
        for label, runs in done.items()
    }
    claims = [_judge(experiment, claim, hits) for claim in experiment.claims]
    runs = {run.key: run for of_label in done.values() for run in of_label}
    seeds = len(next(iter(done.values())))
    published = [claim.verdict for claim in claims if not claim.is_control]
    return books.LedgerRecord(
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


def _judge(experiment: Experiment, claim: Claim, hits: Mapping[str, Hits]) -> books.ClaimRecord:
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
    return books.ClaimRecord(
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


def _line(experiment: Experiment, label: str, runs: list[Made], hits: Hits) -> books.LineRecord:
    return books.LineRecord(
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


def summary(claims: list[books.ClaimRecord]) -> str:
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
