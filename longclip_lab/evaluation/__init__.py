"""Scores with intervals: retrieval, zero-shot classification, named benchmarks, records."""

from __future__ import annotations

import importlib
from typing import Any

from longclip_lab.evaluation.classification import ClassificationScores, zero_shot
from longclip_lab.evaluation.evaluate import evaluate
from longclip_lab.evaluation.intervals import Interval, bootstrap_mean
from longclip_lab.evaluation.late_interaction import (
    late_interaction_classify,
    late_interaction_retrieval,
)
from longclip_lab.evaluation.protocols import BENCHMARKS
from longclip_lab.evaluation.records import Evaluation, Record
from longclip_lab.evaluation.retrieval import RetrievalScores, retrieval
from longclip_lab.evaluation.similarities import Similarity, get_similarity

__all__ = [
    "BENCHMARKS",
    "ClassificationScores",
    "Evaluation",
    "Interval",
    "LongCLIPScore",
    "Record",
    "RetrievalScores",
    "Similarity",
    "bootstrap_mean",
    "evaluate",
    "get_similarity",
    "late_interaction_classify",
    "late_interaction_retrieval",
    "retrieval",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name == "LongCLIPScore":  # torchmetrics is optional: it is imported when it is asked for
        return importlib.import_module("longclip_lab.evaluation.long_clip_score").LongCLIPScore
    raise AttributeError(f"module 'longclip_lab.evaluation' has no attribute {name!r}")
