"""A fresh tiny model and a handful of pairs, small enough that a training step takes moments."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from longclip_lab import models, world


@dataclass
class FewPairs:
    """Pictures of the world with its summaries as short and two of them as long texts."""

    images: np.ndarray
    short: list[str]
    long: list[str]
    source: dict = field(default_factory=lambda: {"dataset": "few", "hash": "0"})


@pytest.fixture(scope="session")
def few():
    pairs = world.pairs(24, seed=5)
    long = [f"{one} {two}" for one, two in zip(pairs.short, pairs.short[::-1], strict=True)]
    return FewPairs(pairs.images, pairs.short, long)


@pytest.fixture(scope="session")
def tiny():
    return models.stretch(models.new_tiny(seed=1))
