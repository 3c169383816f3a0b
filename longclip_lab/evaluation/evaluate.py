"""`evaluate`: a model on named benchmarks or on your own pairs, with records."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from longclip_lab.evaluation.intervals import Interval
from longclip_lab.evaluation.protocols import (
    BENCHMARKS,
    ClassificationTask,
    RetrievalTask,
    Task,
    tasks,
)
from longclip_lab.evaluation.records import Evaluation, Record, data_hash, model_hash
from longclip_lab.evaluation.similarities import Similarity, SimilarityName, get_similarity
from longclip_lab.models import Clip

TIE, BOOTSTRAP = "pessimistic", 1000


def evaluate(
    clip: Clip,
    *benchmarks: Any,
    progress: bool = False,
    seed: int = 0,
    similarity: SimilarityName | None = None,
) -> Evaluation:
    """Scores of a model on benchmarks, one record each.

    A benchmark is a name, or an object with pictures and captions (`world.pairs(...)`,
    `data.coco(...)`), which is scored twice: "<its name>/long-retrieval" and
    "<its name>/short-retrieval". Without any, all named ones run. The names:

    - "world/long-retrieval", "world/short-retrieval": 1,000 held-out pictures of the drawn
      world against their long captions, their short ones.
    - "world/kind", "world/colour": zero-shot classification of 1,000 held-out pictures of
      single things, templates averaged.

    `seed` is the bootstrap's; the pictures are always the same. Texts longer than the model's
    context are cut and counted in the record. `similarity` is "pooled", the cosine of one feature
    a picture and a text, or "late", the token-wise late interaction that FILIP trains; by default
    the one that the model was last trained for. Raises LabError for an unknown name, an object
    without the fields, an empty caption, a broken picture.
    """
    planned = [task for benchmark in benchmarks or BENCHMARKS for task in tasks(benchmark)]
    weights = model_hash(clip.model)
    features = _ImageFeatures(clip, get_similarity(clip, similarity), progress)
    return Evaluation([_record(clip, task, features, weights, progress, seed) for task in planned])


class _Outcome(NamedTuple):
    scores: dict[str, Interval]
    texts: list[str]
    num_truncated: int
    settings: dict[str, Any]


def _record(
    clip: Clip, task: Task, features: _ImageFeatures, weights: str, progress: bool, seed: int
) -> Record:
    start = time.perf_counter()
    score = _retrieve if isinstance(task, RetrievalTask) else _classify
    outcome = score(clip, task, features, progress, seed)
    return Record(
        protocol=task.name,
        model=clip.name,
        model_hash=weights,
        data_hash=data_hash(task.images, outcome.texts, task.source),
        scores=outcome.scores,
        counts={
            "images": len(task.images),
            "texts": len(outcome.texts),
            "different texts": len(set(outcome.texts)),
        },
        num_truncated=outcome.num_truncated,
        share_truncated=outcome.num_truncated / len(outcome.texts),
        skipped=task.skipped,
        settings={
            "tie": TIE,
            "bootstrap": BOOTSTRAP,
            "context_length": clip.context_length,
            "similarity": features.how.name,
            **outcome.settings,
        },
        source=task.source,
        seed=seed,
        device=str(clip.device),
        dtype=str(next(clip.model.parameters()).dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
    )


class _ImageFeatures:
    """Features of the pictures of the last task: the next one often has the same pictures."""

    def __init__(self, clip: Clip, how: Similarity, progress: bool) -> None:
        self.clip, self.how, self.progress = clip, how, progress
        self.images: Any = None

    def __call__(self, task: Task) -> Any:
        if self.images is not task.images:
            self.known = self.how.encode_images(self.clip, task.images, progress=self.progress)
            self.images = task.images
        return self.known


def _retrieve(
    clip: Clip, task: RetrievalTask, features: _ImageFeatures, progress: bool, seed: int
) -> _Outcome:
    encoded = features.how.encode_texts(clip, task.texts, progress=progress)
    scores = features.how.retrieval(
        features(task),
        encoded,
        task.image_of_text,
        tie=TIE,
        bootstrap=BOOTSTRAP,
        seed=seed,
    )
    return _Outcome(scores.scores(), task.texts, encoded.num_truncated, {})


def _classify(
    clip: Clip, task: ClassificationTask, features: _ImageFeatures, progress: bool, seed: int
) -> _Outcome:
    classes = features.how.class_features(clip, task.class_names, task.templates, progress)
    scores = features.how.classify(features(task), classes, task.labels, BOOTSTRAP, seed)
    settings = {"templates": list(task.templates), "classes": list(task.class_names)}
    return _Outcome(scores.scores(), classes.prompts, classes.num_truncated, settings)
