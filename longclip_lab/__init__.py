"""See, measure and train long-text CLIP.

Rooms are imported when they are first used, so that `import longclip_lab` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

from longclip_lab.threads import be_a_good_neighbour

__version__ = "0.1.0"

_ROOMS = {
    "text": "text",
    "world": "world",
    "models": "models",
    "objectives": "objectives",
    "data": "data",
    "training": "training",
    "evaluation": "evaluation",
    "probing": "probing",
    "probe": "probing",
    "attribution": "attribution",
    "recaptioning": "recaptioning",
    "search": "search",
    "generation": "generation",
    "views": "views",
    "reproduction": "reproduction",
    "recipes": "training.recipes",
}
_NAMES = {
    "load": "models",
    "save": "models",
    "export": "models",
    "stretch": "models",
    "train": "training",
    "evaluate": "evaluation",
}

__all__ = sorted([*_ROOMS, *_NAMES])

be_a_good_neighbour()  # before any room imports torch


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"longclip_lab.{_ROOMS[name]}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"longclip_lab.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'longclip_lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
