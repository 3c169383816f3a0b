"""What the quickstart found, as values, and what the numbers say of the papers' claims.

A difference counts only where two 95% intervals do not overlap (`views.theme.compare`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Evaluation, Interval, Record, evaluate
from longclip_lab.models import Clip
from longclip_lab.probing import CounterfactualProbe, EffectiveLength
from longclip_lab.training import Run
from longclip_lab.views.models import against_sweep, long_score, short_score, short_weight_sweep
from longclip_lab.views.theme import CHANCE, compare, percent, points, with_interval

# --- What the quickstart found, as values: all that table, report and JSON need ---


@dataclass(frozen=True)
class ModelRow:
    """One line of the table: a model and its scores (shares from 0 to 1, 95% intervals).

    `stage` is "start", "stretched" or "fine-tuned". R@1 is given both ways (picture to text,
    text to picture) for long and short captions. `truncated` counts the long test captions that
    the model cannot hold. `variance_kept` is the share of the image features' variance that PCM's
    components held, averaged over the steps (None where there is no PCM). `seconds` is the time
    of fine-tuning.
    """

    label: str
    stage: str
    long_i2t: Interval
    long_t2i: Interval
    short_i2t: Interval
    short_t2i: Interval
    kind: Interval
    colour: Interval
    truncated: int
    seconds: float = 0.0
    variance_kept: float | None = None
    recipe: dict = field(default_factory=dict)


COLUMNS = ("long_i2t", "long_t2i", "short_i2t", "short_t2i", "kind", "colour")


@dataclass(frozen=True)
class QuickstartResults:
    """The first lesson's findings.

    `before` and `after` are the effective length of the bundled model and of the fine-tuned one
    named by `best`; `probes` maps model labels to counterfactual probes; `facts` holds seed,
    sizes, seconds, versions, threads and the commit.
    """

    rows: list[ModelRow]
    before: EffectiveLength
    after: EffectiveLength
    probes: dict[str, CounterfactualProbe]
    best: str
    facts: dict

    def table(self):
        """A DataFrame: one model a row, scores in percent."""
        import pandas as pd

        records = [
            {
                "stage": row.stage,
                "model": row.label,
                **{name: 100 * getattr(row, name).value for name in COLUMNS},
                "truncated": row.truncated,
                "variance kept": row.variance_kept,
                "seconds": row.seconds,
            }
            for row in self.rows
        ]
        return pd.DataFrame(records)

    def to_dict(self) -> dict:
        """JSON-able: rows with intervals, the probes and the facts."""
        return {
            "facts": self.facts,
            "rows": [
                {
                    "label": row.label,
                    "stage": row.stage,
                    **{name: getattr(row, name).to_dict() for name in COLUMNS},
                    "truncated": row.truncated,
                    "seconds": row.seconds,
                    "variance_kept": row.variance_kept,
                    "recipe": row.recipe,
                }
                for row in self.rows
            ],
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "probes": {label: probe.to_dict() for label, probe in self.probes.items()},
            "best": self.best,
        }


# --- A model's line in a table of results, read off one evaluation ---

SCORED = ("long-retrieval", "short-retrieval", "kind", "colour")


def score_row(
    clip: Clip,
    label: str,
    stage: str,
    *benchmarks: Any,
    run: Run | None = None,
    progress: bool = False,
) -> ModelRow:
    """Evaluate `clip` and put its scores in one row.

    `benchmarks` are what `evaluate` takes; together they must give long and short retrieval, kind
    and colour, by default the world's four of 1,000 pictures each. `run` is the fine-tuning that
    `clip` comes from: it adds the recipe, the seconds and PCM's share of the variance (the mean
    over the logged steps). `stage` is "start", "stretched" or "fine-tuned".

    Raises LabError if a score is missing.
    """
    found = evaluate(clip, *benchmarks, progress=progress)
    long, short, kind, colour = (_of(found, kind) for kind in SCORED)
    shares = [row["variance_kept"] for row in run.history] if run else []
    is_pcm = run is not None and run.recipe.objective == "longclip"
    return ModelRow(
        label=label,
        stage=stage,
        long_i2t=long.scores["i2t R@1"],
        long_t2i=long.scores["t2i R@1"],
        short_i2t=short.scores["i2t R@1"],
        short_t2i=short.scores["t2i R@1"],
        kind=kind.scores["top-1"],
        colour=colour.scores["top-1"],
        truncated=long.num_truncated,
        seconds=run.seconds if run else 0.0,
        variance_kept=sum(shares) / len(shares) if is_pcm else None,
        recipe=asdict(run.recipe) if run else {},
    )


def _of(found: Evaluation, kind: str) -> Record:
    """The first record whose protocol ends in `kind`, whatever the data set is called."""
    for record in found:
        if record.protocol.rpartition("/")[2] == kind:
            return record
    names = ", ".join(record.protocol for record in found)
    raise LabError(f"A row needs a score of {kind}; the benchmarks gave {names} only.")


# --- What the quickstart's numbers say about the papers' claims ---

Verdict = Literal["seen", "no difference seen", "not seen", "the opposite"]
PAPERS_LENGTH = 20  # tokens, Long-CLIP, section 3.1
NEARLY_ALL = 0.99


@dataclass(frozen=True)
class Claim:
    """What a paper says, whether it is seen here, and the numbers that decide."""

    statement: str
    source: str
    verdict: Verdict
    evidence: str


def claims(results: QuickstartResults) -> list[Claim]:
    """Every claim that these results can speak to, in the order of the lesson."""
    judges: tuple[Callable[[QuickstartResults], Claim | None], ...] = (
        _flattens, _because_of_positions, _salience, _linear_harms, _interpolation_matters,
        _long_only_harms, _short_protects, _pcm, _reads_on, _small_things,
    )  # fmt: skip
    judged = (judge(results) for judge in judges)
    return [claim for claim in judged if claim is not None]


def named(results: QuickstartResults, label: str) -> ModelRow | None:
    """The row with this label."""
    return next((row for row in results.rows if row.label == label), None)


def start(results: QuickstartResults) -> ModelRow:
    """The model as it was. Raises LabError if there is none."""
    for row in results.rows:
        if row.stage == "start":
            return row
    raise LabError('expected a row with the stage "start" in the results, got none.')


def best(results: QuickstartResults) -> ModelRow:
    """The fine-tuned model that `results.best` names. Raises LabError if there is none."""
    found = named(results, results.best)
    if found is None:
        labels = [row.label for row in results.rows]
        raise LabError(
            f"expected the best model to have a row, got {results.best!r}. "
            + suggest(results.best, labels)
        )
    return found


def trained_with(
    results: QuickstartResults, objective: str, short_weight: float | None = None
) -> ModelRow | None:
    """The first fine-tuned model with this objective (and weight of the short loss)."""
    for row in results.rows:
        recipe = row.recipe
        if recipe.get("objective") == objective and (
            short_weight is None or recipe["short_weight"] == short_weight
        ):
            return row
    return None


def _flattens(results: QuickstartResults) -> Claim:
    plateau = results.before.lengths["as written"]["plateau"]
    near = plateau.low <= 1.25 * PAPERS_LENGTH and plateau.high >= 0.75 * PAPERS_LENGTH
    return Claim(
        "The truncation curve of a CLIP flattens at about 20 tokens.",
        "Long-CLIP, section 3.1",
        "seen" if near else "not seen",
        f"95% of the score is there after {plateau.value:.0f} tokens (95% interval: "
        f"{plateau.low:.0f} to {plateau.high:.0f}).",
    )


def _because_of_positions(results: QuickstartResults) -> Claim | None:
    curve = results.before.curve
    if not {"summary last", "positions re-randomised"} <= set(curve.hits):
        return None
    written, moved, shaken = (
        curve.scores(name) for name in ("as written", "summary last", "positions re-randomised")
    )
    half = next(i for i, s in enumerate(written) if s.value >= written[-1].value / 2)
    order = compare(moved[half], written[half]) == "lower"
    shaking = compare(shaken[-1], written[-1])
    cost = (
        f"random positions from 20 on cost {points(shaken[-1], written[-1])}"
        if shaking == "lower"
        else "random positions from 20 on cost nothing that can be seen"
    )
    return Claim(
        "It flattens because the positions after 20 are not trained.",
        "Long-CLIP, section 3.1",
        "not seen" if order or shaking == "lower" else "seen",
        f"After {curve.cuts[half]} tokens R@1 is {percent(written[half].value)}; with the summary "
        f"moved to the end it is {percent(moved[half].value)}, so "
        + ("the order of what is said bends the curve" if order else "the order does not matter")
        + f"; {cost}.",
    )


def _salience(results: QuickstartResults) -> Claim:
    probe = next(iter(results.probes.values()))
    large, small = (probe.accuracy((probe.size == s) & ~probe.unread) for s in ("large", "small"))
    verdict = compare(large, small)
    return Claim(
        "What is salient overshadows the rest.",
        "LoTLIP, section 1",
        {"higher": "seen", "lower": "the opposite"}.get(verdict, verdict),
        f"Right answers, words that it reads: large things {with_interval(large)}, small things "
        f"{with_interval(small)}.",
    )


def _linear_harms(results: QuickstartResults) -> Claim | None:
    linear, kps, before = named(results, "linear"), named(results, "KPS"), start(results)
    if linear is None or kps is None:
        return None
    by_linear, by_kps = (compare(short_score(r), short_score(before)) for r in (linear, kps))
    if by_linear == "lower":
        verdict = "not seen" if by_kps == "lower" else "seen"
    else:
        verdict = "no difference seen" if by_linear == "no difference seen" else "the opposite"
    return Claim(
        "Interpolating all positions damages short captions; keeping the first 20 (KPS) does not.",
        "Long-CLIP, section 3.2",
        verdict,
        f"Short R@1: {with_interval(short_score(before))} as it was, "
        f"{with_interval(short_score(linear))} linear, {with_interval(short_score(kps))} KPS.",
    )


def _interpolation_matters(results: QuickstartResults) -> Claim | None:
    kps, random = named(results, "KPS"), named(results, "keep + random")
    if kps is None or random is None:
        return None
    verdict = compare(long_score(kps), long_score(random))
    return Claim(
        "Interpolating the positions after 20 is better than leaving new ones untrained.",
        "Long-CLIP, section 3.2",
        {"higher": "seen", "lower": "the opposite"}.get(verdict, verdict),
        f"Long R@1 without training: KPS {with_interval(long_score(kps))}, keep + random "
        f"{with_interval(long_score(random))}.",
    )


def _long_only_harms(results: QuickstartResults) -> Claim | None:
    tuned, kps = trained_with(results, "long"), named(results, "KPS")
    if tuned is None or kps is None:
        return None
    verdict = compare(short_score(tuned), short_score(kps))
    return Claim(
        "Fine-tuning on long captions alone costs short captions.",
        "Long-CLIP, section 3.3",
        {"lower": "seen", "higher": "the opposite"}.get(verdict, verdict),
        f"Short R@1 {with_interval(short_score(kps))} → {with_interval(short_score(tuned))}, long "
        f"R@1 {with_interval(long_score(kps))} → {with_interval(long_score(tuned))}.",
    )


def _short_protects(results: QuickstartResults) -> Claim | None:
    alone = trained_with(results, "long")
    mixed = [row for row in short_weight_sweep(results.rows) if row.recipe["objective"] == "mixed"]
    if alone is None or not mixed:
        return None
    verdict = compare(short_score(mixed[-1]), short_score(alone))
    return Claim(
        "Adding the short captions to the loss protects them.",
        "Long-CLIP, section 3.3",
        {"higher": "seen", "lower": "the opposite"}.get(verdict, verdict),
        f"Short R@1 {with_interval(short_score(alone))} without, "
        f"{with_interval(short_score(mixed[-1]))} with “{mixed[-1].label}”, whose long R@1 is "
        f"{with_interval(long_score(mixed[-1]))} instead of {with_interval(long_score(alone))}.",
    )


def _pcm(results: QuickstartResults) -> Claim | None:
    pcm, sweep = trained_with(results, "longclip"), short_weight_sweep(results.rows)
    if pcm is None or len(sweep) < 2:
        return None
    place = against_sweep(pcm, sweep)
    verdicts: dict[str, Verdict] = {
        "above": "seen", "on": "no difference seen", "below": "the opposite"
    }  # fmt: skip
    kept = ""
    if pcm.variance_kept is not None:
        kept = f" Its components held {percent(pcm.variance_kept, 2)} of the variance"
        kept += ", so here PCM is mixing." if pcm.variance_kept > NEARLY_ALL else "."
    return Claim(
        "Matching primary components (PCM) is better than mixing with the full image feature.",
        "Long-CLIP, section 3.3",
        verdicts[place],
        f"PCM (short {percent(short_score(pcm).value, 1)}, long "
        f"{percent(long_score(pcm).value, 1)}) lies {place} the curve that the weight of the short "
        f"loss draws without it.{kept}",
    )


def _reads_on(results: QuickstartResults) -> Claim | None:
    first, tuned = next(iter(results.probes.values())), results.probes[results.best]
    if not first.unread.any():
        return None
    behind = tuned.accuracy(first.unread)
    return Claim(
        "Stretched and fine-tuned, the model reads what it could not hold before.",
        "Long-CLIP, section 4",
        "seen" if behind.low > CHANCE else "no difference seen",
        f"“{results.best}” answers {with_interval(behind)} of the {behind.n:,} questions behind "
        "the old context, where chance is 50%.",
    )


def _small_things(results: QuickstartResults) -> Claim:
    first, tuned = next(iter(results.probes.values())), results.probes[results.best]
    asked = np.asarray(first.size == "small") & ~first.unread
    before, after = first.accuracy(asked), tuned.accuracy(asked)
    verdict = compare(after, before)
    return Claim(
        "Long captions teach a model the small things.",
        "LoTLIP, section 1 and figure 1",
        {"higher": "seen", "lower": "the opposite"}.get(verdict, verdict),
        f"Right answers on small things, words that both read: {with_interval(before)} → "
        f"{with_interval(after)}.",
    )
