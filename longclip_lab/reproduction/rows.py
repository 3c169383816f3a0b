"""A model's line in a table of results, read off one evaluation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Evaluation, Record, evaluate
from longclip_lab.models import Clip
from longclip_lab.reproduction.results import ModelRow
from longclip_lab.training import Run

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
