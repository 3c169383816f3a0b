"""A folder of pictures of the drawn world, as a reader may have it."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from longclip_lab import models, world

LONG_AGO = 1_600_000_000  # seconds; a picture that was not changed just now


def save(path, picture, when=LONG_AGO):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    os.utime(path, (when, when))


@pytest.fixture(scope="session")
def clip():
    return models.load("tiny")


@pytest.fixture(scope="session")
def pairs():
    return world.pairs(12)


@pytest.fixture(scope="session")
def put():
    """Saves a picture as a file that was last changed at a given time, by default long ago."""
    return save


@pytest.fixture
def folder(tmp_path, pairs):
    """Twelve pictures, two of them in folders below."""
    root = tmp_path / "pictures"
    names = [*(f"{i:02}.png" for i in range(10)), "trips/10.png", "trips/lake/11.png"]
    for name, picture in zip(names, pairs.images, strict=True):
        save(root / name, picture)
    return root


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"
