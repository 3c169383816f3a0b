"""Scores with intervals: retrieval, zero-shot classification, named benchmarks, records."""

from longclip_lab.evaluation.classification import ClassificationScores, zero_shot
from longclip_lab.evaluation.evaluate import evaluate
from longclip_lab.evaluation.intervals import Interval, bootstrap_mean
from longclip_lab.evaluation.protocols import BENCHMARKS
from longclip_lab.evaluation.records import Evaluation, Record
from longclip_lab.evaluation.retrieval import RetrievalScores, retrieval

__all__ = [
    "BENCHMARKS",
    "ClassificationScores",
    "Evaluation",
    "Interval",
    "Record",
    "RetrievalScores",
    "bootstrap_mean",
    "evaluate",
    "retrieval",
    "zero_shot",
]
