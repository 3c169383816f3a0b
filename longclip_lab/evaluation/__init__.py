"""Scores with intervals: retrieval, zero-shot classification, named benchmarks, records."""

from __future__ import annotations

import importlib
from typing import Any

from longclip_lab.evaluation.classification import ClassificationScores, zero_shot
from longclip_lab.evaluation.comparing import comparable
from longclip_lab.evaluation.comparison import PublishedScore, ScoreTable, score_table
from longclip_lab.evaluation.contamination import Contamination, contamination
from longclip_lab.evaluation.evaluate import evaluate
from longclip_lab.evaluation.intervals import Interval, bootstrap_mean
from longclip_lab.evaluation.late_interaction import (
    late_interaction_classify,
    late_interaction_retrieval,
)
from longclip_lab.evaluation.lengths import at_length
from longclip_lab.evaluation.protocols import BENCHMARKS
from longclip_lab.evaluation.records import Evaluation, Record
from longclip_lab.evaluation.retrieval import RetrievalScores, retrieval
from longclip_lab.evaluation.runs import Run, read_records, run
from longclip_lab.evaluation.scoring import Scorer
from longclip_lab.evaluation.similarities import Similarity, get_similarity

__all__ = [
    "BENCHMARKS",
    "ClassificationScores",
    "Contamination",
    "Evaluation",
    "Interval",
    "LongCLIPScore",
    "PublishedScore",
    "Record",
    "RetrievalScores",
    "Run",
    "ScoreTable",
    "Scorer",
    "Similarity",
    "at_length",
    "bootstrap_mean",
    "comparable",
    "contamination",
    "evaluate",
    "get_similarity",
    "late_interaction_classify",
    "late_interaction_retrieval",
    "read_records",
    "retrieval",
    "run",
    "score_table",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name == "LongCLIPScore":  # torchmetrics is optional: it is imported when it is asked for
        return importlib.import_module("longclip_lab.evaluation.long_clip_score").LongCLIPScore
    raise AttributeError(f"module 'longclip_lab.evaluation' has no attribute {name!r}")
