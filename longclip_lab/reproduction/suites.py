"""What arms are asked: sets of tests by name, all on pictures that nothing was chosen by.

N pictures, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from longclip_lab import world
from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Similarity, get_similarity
from longclip_lab.evaluation.records import model_hash
from longclip_lab.models import Clip
from longclip_lab.reproduction.measured import Measured, measure

SIBLINGS = 4
"""Pictures of the long captions' pool that share a summary, so that only the details tell them
apart."""


@dataclass(frozen=True)
class Suite:
    """Retrieval tests by name (pictures, one text each) and pictures of single things."""

    name: str
    tests: dict[str, tuple[np.ndarray, list[str]]]
    singles: world.SingleObjects | None
    features: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict, repr=False)

    def ask(self, clip: Clip) -> Measured:
        """The hits of `clip`, picture by picture. A locked image tower runs only once for all.

        A model that FILIP trained is asked by late interaction, every other one by its pooled
        features.
        """
        how = get_similarity(clip)
        tower = model_hash(clip.model.visual)
        tests = {}
        for name, (images, texts) in self.tests.items():
            key = (tower, how.name, id(images))
            if key not in self.features:
                self.features[key] = how.encode_images(clip, images)
            tests[name] = (self.features[key], texts)
        found = measure(clip, self.name, "", tests, self.singles)
        if self.singles is not None:
            found.hits["thing"] = things(clip, how, self.singles)
        # Towers that are trained never come back; those of the last arm are enough.
        for key in [key for key in self.features if key[0] != tower]:
            del self.features[key]
        return found


def things(clip: Clip, how: Similarity, singles: world.SingleObjects) -> np.ndarray:
    """Hits [N] of naming a single thing's colour and kind together, one of 96 classes."""
    names = [f"{colour} {kind}" for kind in world.KINDS for colour in world.COLOURS]
    labels_N = singles.labels["kind"] * len(world.COLOURS) + singles.labels["colour"]
    classes = how.class_features(clip, names, world.TEMPLATES)
    found = how.classify(how.encode_images(clip, singles.images), classes, labels_N, bootstrap=0)
    return (found.ranks == 1).astype(float)


def _pools(
    n: int, seed: int, writers: tuple[str, ...], siblings: int = SIBLINGS
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Short captions among pictures with different summaries, long ones among siblings."""
    distinct = world.pairs(n, seed=seed)
    tests = {"short": (distinct.images, distinct.short)}
    images = None
    for writer in writers:
        told = world.pairs(n, seed=seed, captioner=writer, siblings=siblings)
        images = told.images if images is None else images  # the same pictures for every writer
        tests[f"long, {writer}"] = (images, told.long)
    return tests


def _family() -> Suite:
    """LoTLIP's three tasks: long-text retrieval, short-text retrieval, classification."""
    tests = _pools(1000, world.TEST_SEED, ("surveyor", "painter"))
    return Suite("family", tests, world.single_objects(1000, seed=world.TEST_SEED))


def _stretching() -> Suite:
    """Lessons 02 and 03: one writer of long captions, whose words the tiny CLIP has seen."""
    tests = _pools(1000, world.TEST_SEED, ("surveyor",))
    return Suite("stretching", tests, world.single_objects(1000, seed=world.TEST_SEED))


def _micro() -> Suite:
    """A few pictures, for trying out."""
    tests = _pools(24, world.SELECTION_SEED, ("surveyor",), siblings=1)
    return Suite("micro", tests, world.single_objects(24, seed=world.SELECTION_SEED))


SUITES: dict[str, Callable[[], Suite]] = {
    "family": _family,
    "stretching": _stretching,
    "micro": _micro,
}


@lru_cache(maxsize=2)
def suite(name: str) -> Suite:
    """The suite of this name, drawn once. Raises LabError for an unknown name, with near ones."""
    if name not in SUITES:
        raise LabError(f"There is no suite {name!r}. {suggest(name, SUITES)}")
    return SUITES[name]()
