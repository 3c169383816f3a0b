"""What a checkpoint is: format, architecture, positions, types, sizes, what is missing."""

from __future__ import annotations

from longclip_lab.models.inspection.inspecting import Inspection, inspect

__all__ = ["Inspection", "inspect"]
