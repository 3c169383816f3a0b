"""Experiments that put the papers' claims beside what is measured here."""

from longclip_lab.reproduction.results import ModelRow, QuickstartResults

__all__ = ["ModelRow", "QuickstartResults"]
