"""Experiments that put the papers' claims beside what is measured here."""

from longclip_lab.reproduction.paper_tables import (
    published_statements,
    published_table,
    published_tables,
)
from longclip_lab.reproduction.results import ModelRow, QuickstartResults

__all__ = [
    "ModelRow",
    "QuickstartResults",
    "published_statements",
    "published_table",
    "published_tables",
]
