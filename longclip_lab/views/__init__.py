"""Figures and widgets over what the rooms below return."""

from __future__ import annotations

from longclip_lab.views.dispatch import plot
from longclip_lab.views.theme import COLOURS, CONFIG, PALETTE, add_curve, figure, translucent

__all__ = ["COLOURS", "CONFIG", "PALETTE", "add_curve", "figure", "plot", "translucent"]
