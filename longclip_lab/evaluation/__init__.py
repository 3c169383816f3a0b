"""Scores with intervals: retrieval, zero-shot classification, named benchmarks, records."""

from __future__ import annotations

import importlib
from typing import Any

from longclip_lab.evaluation.classification import ClassificationScores, zero_shot
from longclip_lab.evaluation.late_interaction import (
    Similarity,
    get_similarity,
    late_interaction_classify,
    late_interaction_retrieval,
)
from longclip_lab.evaluation.records import Evaluation, Record, comparable, read_records
from longclip_lab.evaluation.retrieval import RetrievalScores, retrieval
from longclip_lab.evaluation.scoring import (
    BENCHMARKS,
    Contamination,
    Run,
    Scorer,
    at_length,
    contamination,
    evaluate,
    run,
    tasks,
)
from longclip_lab.evaluation.table import PublishedScore, ScoreTable, score_table
from longclip_lab.stats import Interval, bootstrap_mean

__all__ = [
    "BENCHMARKS", "ClassificationScores", "Contamination", "Evaluation", "Interval",
    "LongCLIPScore", "PublishedScore", "Record", "RetrievalScores", "Run", "ScoreTable", "Scorer",
    "Similarity", "at_length", "bootstrap_mean", "comparable", "contamination", "evaluate",
    "get_similarity", "late_interaction_classify", "late_interaction_retrieval", "read_records",
    "retrieval", "run", "score_table", "tasks", "zero_shot",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "LongCLIPScore":  # torchmetrics is optional: it is imported when it is asked for
        return importlib.import_module("longclip_lab.evaluation.long_clip_score").LongCLIPScore
    raise AttributeError(f"module 'longclip_lab.evaluation' has no attribute {name!r}")
