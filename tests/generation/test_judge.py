"""The judge of generated pictures: of drawn ones it sees what is there and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab import generation, world
from longclip_lab.errors import LabError


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(40, seed=world.SELECTION_SEED)


def test_what_was_drawn_is_seen(pairs):
    found = generation.judge(pairs.images, pairs.long_captions)
    assert len(found) > 1000
    assert np.mean([one.shown for one in found]) > 0.98
    # Of the next prompt a picture shows what the two share by chance.
    other = generation.judge(pairs.images[1:], pairs.long_captions[:-1])
    assert 0.1 < np.mean([one.shown for one in other]) < 0.4


def test_lies_are_not_shown():
    lying = world.pairs(40, seed=world.SELECTION_SEED, hallucination=0.3)
    found = generation.judge(lying.images, lying.long_captions)
    lies = [one.shown for one in found if not one.fact.true and one.fact.attribute != "kind"]
    assert len(lies) > 100
    assert np.mean(lies) < 0.15


def test_pictures_of_another_form(pairs):
    with pytest.raises(LabError, match=r"Expected pictures \[B, 72, 72, 3\] of uint8"):
        generation.see(pairs.images[:, :36])
    with pytest.raises(LabError, match="a prompt for each picture, got 40 and 1"):
        generation.judge(pairs.images, pairs.long_captions[:1])
