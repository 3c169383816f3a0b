"""The training pictures of arms: drawn once, kept on disk, shared by all arms that learn from them.

FOLDER/sets/KEY/texts.json   what is said of the pictures, and where they come from
FOLDER/sets/KEY/images.npy   the pictures, memory-mapped
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_path, atomic_write, read_json_object, to_json
from longclip_lab.reproduction.arms import ARM_VERSION, DIGITS
from longclip_lab.training.recipe import Recipe

TEXTS, IMAGES = "texts.json", "images.npy"


@dataclass(frozen=True)
class TrainingSet:
    """What `training.train` reads of a set of pictures."""

    images: np.ndarray
    short: list[str]
    long: list[str]
    captioners: list[dict[str, str]]
    captions: list[list[str]]
    source: dict[str, Any]
    name: str
    skipped: dict[str, list[str]] = field(default_factory=dict)


def training_set(recipe: Recipe, home: Path, seed: int = world.TRAIN_SEED) -> TrainingSet:
    """The world's pictures for `recipe`, from `home`/sets if they have been drawn before.

    They are those that `training.train` would draw: with `subcaptions` noisy alt-texts and long
    captions by three writers, otherwise clean short and long captions by one.
    """
    facts = {
        "version": ARM_VERSION,
        "kind": "pairs" if recipe.subcaptions is None else "web",
        "pairs": recipe.pairs,
        "siblings": recipe.siblings,
        "seed": seed,
    }
    if recipe.subcaptions is not None:
        facts |= {"noise": recipe.alt_text_noise, "hallucination": recipe.hallucination}
    return _open(json.dumps(facts, sort_keys=True), Path(home))


@lru_cache(maxsize=2)
def _open(facts: str, home: Path) -> TrainingSet:
    folder = home / "sets" / hashlib.sha256(facts.encode()).hexdigest()[:DIGITS]
    texts, images = folder / TEXTS, folder / IMAGES
    if not texts.exists():
        drawn = _draw(**json.loads(facts))
        with atomic_path(images) as temporary, temporary.open("wb") as file:
            np.save(file, drawn.images)
        told = {
            "short": drawn.short,
            "long": drawn.long,
            "captioners": getattr(drawn, "captioners", []),
            "captions": drawn.captions,
            "source": drawn.source,
            "name": drawn.name,
        }
        atomic_write(texts, to_json(told))  # last: where it is, the pictures are
    try:
        return TrainingSet(images=np.load(images, mmap_mode="r"), **read_json_object(texts))
    except (LabError, TypeError, ValueError, EOFError, OSError) as error:
        raise LabError(f"{folder} cannot be read ({error}). Remove it to draw it anew.") from None


def _draw(
    kind: str, pairs: int, siblings: int, seed: int, version: int, **rates: float
) -> world.WorldPairs:
    if kind == "pairs":
        return world.pairs(pairs, seed=seed, siblings=siblings)
    return world.web_pairs(pairs, seed, siblings=siblings, **rates)
