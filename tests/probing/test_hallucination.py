"""Wrong facts counted: at the rate they were made, and as CHAIR counts them."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.probing import hallucination, majority_limit

RATE = 0.3


@pytest.fixture(scope="module")
def lying():
    return world.pairs(80, hallucination=RATE)


@pytest.fixture(scope="module")
def found(lying):
    return hallucination(lying.long_captions, lying.scenes)


def test_rates_are_those_the_captions_were_made_with(found):
    things = found.rate("things")
    assert things.low < RATE < things.high
    assert found.rate("summary").value == found.rate("background").value == 0
    assert found.table()["facts"].sum() == things.n


def test_sentences_with_a_lie_are_counted_one_by_one(found, lying):
    told = [s for caption in lying.long_captions for s in caption.sentences[1:] if s.thing >= 0]
    wrong = [any(not fact.true for fact in sentence.facts) for sentence in told]
    assert found.sentences().value == pytest.approx(np.mean(wrong))
    assert found.sentences().n == len(told)
    assert found.captions().n == len(lying)


def test_chair_counts_kinds_that_are_not_there(found, lying):
    named = absent = captions = 0
    for caption, scene in zip(lying.long_captions, lying.scenes, strict=True):
        kinds = {word.strip(".,") for word in caption.text.lower().split()} & set(world.KINDS)
        # behind "left of" and the like a kind is named that is there
        gone = kinds - {thing.kind for thing in scene.things}
        named, absent, captions = named + len(kinds), absent + len(gone), captions + bool(gone)
    assert found.absent.sum() == absent
    assert found.chair_s == pytest.approx(captions / len(lying))
    assert 0 < found.chair_i < RATE


def test_the_truth_has_none():
    honest = world.pairs(5)
    found = hallucination(honest.long_captions, honest.scenes)
    assert found.rate().value == found.chair_i == found.chair_s == 0


def test_at_the_limit_the_truth_is_as_likely_as_a_lie():
    for values in (2, 3, 8, 12):
        rate = majority_limit(values)
        assert 1 - rate == pytest.approx(rate / (values - 1))


def test_bad_input_is_refused(lying):
    with pytest.raises(LabError):
        hallucination([], [])
    with pytest.raises(LabError):
        hallucination(lying.long_captions, lying.scenes[:1])
    with pytest.raises(LabError):
        majority_limit(1)
    truth = hallucination(lying.long_captions[:2], lying.scenes[:2])
    with pytest.raises(LabError, match="facts"):
        truth.rate("nowhere")
