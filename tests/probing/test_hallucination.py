"""Wrong facts counted: at the rate they were made, and as CHAIR counts them."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.probing import hallucination, majority_limit, truth_margin

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


def test_ranges_of_positions_hold_every_fact_once(found):
    rows = found.by_position((1, 18, 77, 1000))
    assert rows["facts"].sum() == len(found.wrong)
    late = found.wrong[found.position >= 77]
    assert rows.loc["77-999", "wrong"] == pytest.approx(100 * late.mean(), abs=0.05)


def test_the_truth_has_none():
    honest = world.pairs(5)
    found = hallucination(honest.long_captions, honest.scenes)
    assert found.rate().value == found.chair_i == found.chair_s == 0


def test_at_the_limit_the_truth_is_as_likely_as_a_lie():
    for values in (2, 3, 8, 12):
        rate = majority_limit(values)
        assert 1 - rate == pytest.approx(rate / (values - 1))
        assert truth_margin(rate, values) == pytest.approx(0, abs=1e-12)


def test_the_margin_is_what_the_best_similarities_differ_by():
    values, rate = 4, 0.3
    told = np.full((values, values), rate / (values - 1))  # p(text | picture)
    np.fill_diagonal(told, 1 - rate)
    best = np.log(told / told.mean(axis=0))
    assert truth_margin(rate, values) == pytest.approx(best[0, 0] - best[0, 1])


def test_bad_input_is_refused(lying):
    with pytest.raises(LabError):
        hallucination([], [])
    with pytest.raises(LabError):
        hallucination(lying.long_captions, lying.scenes[:1])
    with pytest.raises(LabError):
        majority_limit(1)
    with pytest.raises(LabError, match="rate"):
        truth_margin(0.0, 3)
    truth = hallucination(lying.long_captions[:2], lying.scenes[:2])
    with pytest.raises(LabError, match="facts"):
        truth.rate("nowhere")
