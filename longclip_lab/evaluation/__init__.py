"""Scores with intervals: retrieval."""

from longclip_lab.evaluation.intervals import Interval, bootstrap_mean
from longclip_lab.evaluation.retrieval import RetrievalScores, retrieval

__all__ = ["Interval", "RetrievalScores", "bootstrap_mean", "retrieval"]
