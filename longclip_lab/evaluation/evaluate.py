"""`evaluate`: a model on named benchmarks or on your own pairs, with records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longclip_lab.evaluation.protocols import BENCHMARKS, tasks
from longclip_lab.evaluation.records import Evaluation
from longclip_lab.evaluation.scoring import Scorer
from longclip_lab.evaluation.similarities import SimilarityName
from longclip_lab.models import Clip


def evaluate(
    clip: Clip,
    *benchmarks: Any,
    progress: bool = False,
    seed: int = 0,
    similarity: SimilarityName | None = None,
    length: int | None = None,
    root: str | Path | None = None,
    allow_partial: bool = False,
    features: str | Path | None = None,
) -> Evaluation:
    """Scores of a model on benchmarks, one record each.

    A benchmark is a name, an opened one (`data.benchmarks.open_benchmark`), or an object with
    pictures and captions (`world.pairs(...)`, `data.coco(...)`), which is scored twice: "<its
    name>/long-retrieval" and "<its name>/short-retrieval". Without any, those of the drawn world
    run, which need no files:

    - "world/long-retrieval", "world/short-retrieval": 1,000 held-out pictures of the drawn
      world against their long captions, their short ones.
    - "world/kind", "world/colour": zero-shot classification of 1,000 held-out pictures of
      single things, templates averaged.

    The others (`data.benchmarks.PROTOCOLS`) are read below `root`, and half a benchmark is refused
    without `allow_partial`. `seed` is the bootstrap's; the pictures are always the same. Texts
    longer than `length` tokens, by default the model's context, are cut and counted in the record.
    `similarity` is "pooled", the cosine of one feature a picture and a text, or "late", the
    token-wise late interaction that FILIP trains; by default the one that the model was last
    trained for. In `features`, a folder, the pictures' features are kept, so that the next call
    need not make them. Raises LabError for an unknown name, an object without the fields, an empty
    caption, a broken picture, a length that the model does not read.
    """
    planned = [
        task
        for benchmark in benchmarks or BENCHMARKS
        for task in tasks(benchmark, root, allow_partial, progress)
    ]
    folder = None if features is None else Path(features)
    scorer = Scorer(clip, similarity, folder, seed, progress)
    return Evaluation([scorer.record(task, length) for task in planned])
