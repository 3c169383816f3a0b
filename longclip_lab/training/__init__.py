"""Training: recipes, one loop for one or many processes, checkpoints that survive a kill.

Names are imported when they are first used, so that the command line can show a recipe's
fields without loading torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Recipe": "recipe",
    "longclip": "recipes",
    "recipe_for": "recipes",
    "METHODS": "recipes",
    "Run": "run",
    "train": "run",
    "new_model": "run",
    "extra_tokens": "run",
    "stored_features": "data",
    "memory_of": "plan",
    "largest_micro_batch": "plan",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"longclip_lab.training.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'longclip_lab.training' has no attribute {name!r}")
