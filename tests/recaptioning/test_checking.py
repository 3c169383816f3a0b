"""The reader of free text, against writers in the world whose rate of lies is known."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.probing.counterfactual import hallucination
from longclip_lab.recaptioning import Claim, claims, hallucinated
from longclip_lab.world.captions import long_caption
from longclip_lab.world.datasets import distinct_scenes

RATES = (0.0, 0.1, 0.3, 0.6, 1.0)
KINDS, COLOURS = 12, 8


def expected_colours(scenes, rate):
    """The share of coloured mentions that are wrong, by the writers' own rule.

    The summary names two things, rightly. Each of n things is told once more: kind and colour are
    both true with (1 - r)^2; a lie about the kind names another kind of the scene with
    (n - 1) / 11, whose colour is the one told with 1 / 8, as colours are drawn evenly.
    """
    n = np.array([len(scene.things) for scene in scenes])
    right = (1 - rate) ** 2 + rate * (n - 1) / (KINDS - 1) / COLOURS
    return float((n * (1 - right)).sum() / (n + 2).sum())


@pytest.fixture(scope="module")
def scenes():
    return distinct_scenes(400, seed=1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("captioner", sorted(world.CAPTIONERS))
def test_it_finds_what_the_worlds_writers_made_up(scenes, captioner, rate):
    rngs = [np.random.default_rng((7, i)) for i in range(len(scenes))]
    told = [
        long_caption(scene, rng, captioner, rate) for scene, rng in zip(scenes, rngs, strict=True)
    ]
    found = hallucinated([caption.text for caption in told], scenes)
    known = hallucination(told, scenes)
    # Kinds: exactly those that the writers know they made up.
    np.testing.assert_array_equal(found.absent_N, known.absent)
    assert (found.named_N >= known.named).all()  # also those in "left of the house"
    # Colours: as often as the rate makes them. Things of one scene are not independent draws.
    expected = expected_colours(scenes, rate)
    assert found.colours.value == pytest.approx(expected, abs=0.03 if rate else 0)
    assert found.words.value == 0
    assert found.silent.value == 0


def test_without_lies_it_finds_none():
    pairs = world.pairs(100)
    found = hallucinated(pairs.long, pairs.scenes)
    assert (found.kinds.value, found.captions.value, found.colours.value) == (0, 0, 0)
    assert 0 < found.kinds.high < 0.02
    other = hallucinated(pairs.long, pairs.scenes[1:] + pairs.scenes[:1])
    assert other.kinds.low > 0.3
    assert {name: share.value for name, share in found.elsewhere.items()} == {
        "kinds": other.kinds.value,
        "captions": other.captions.value,
        "colours": other.colours.value,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A white and red house, two boats.", [("house", "white"), ("house", "red"), ("boat", "")]),
        ("The sky is blue and boats are there.", [("boat", "")]),
        ("The kite is pink. Its umbrella is large.", [("kite", "pink"), ("parasol", "")]),
        ("A RED\nCar", [("car", "red")]),
        ("Green, dotted, tilted trees are brown", [("tree", "green")]),
        ("a cartoon of housekeeping in redwood", []),
        ("", []),
    ],
)
def test_what_is_read_of_free_text(text, expected):
    assert claims(text) == [Claim(*one) for one in expected]


def test_words_that_were_not_read_are_counted():
    scene = world.pairs(1).scenes[0]
    found = hallucinated(["The dog, a dog on the grass.", ""], [scene, scene])
    assert found.unknown == {"dog": 2, "grass": 1}
    assert found.words_N.tolist() == [7, 0]
    assert found.words.value == pytest.approx(3 / 7)
    assert found.silent.value == 1
    assert found.to_dict()["kinds"] is None
    assert found.table().loc["named kinds that are not there", "of"] == 0


def test_captions_need_their_scenes():
    scenes = world.pairs(2).scenes
    with pytest.raises(LabError, match="got 1 and 2"):
        hallucinated(["a boat"], scenes)
    with pytest.raises(LabError, match="got 0 and 0"):
        hallucinated([], [])
