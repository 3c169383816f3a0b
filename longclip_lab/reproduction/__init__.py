"""Experiments that put the papers' claims beside what is measured here."""

from longclip_lab.reproduction.bookkeeping import LedgerRecord, ledger, record_of, reproduce
from longclip_lab.reproduction.experiment import (
    published_statements,
    published_table,
    published_tables,
)
from longclip_lab.reproduction.experiments import EXPERIMENTS, experiment
from longclip_lab.reproduction.results import ModelRow, QuickstartResults

__all__ = [
    "EXPERIMENTS",
    "LedgerRecord",
    "ModelRow",
    "QuickstartResults",
    "experiment",
    "ledger",
    "published_statements",
    "published_table",
    "published_tables",
    "record_of",
    "reproduce",
]
