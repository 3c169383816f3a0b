"""Single things told in one sentence, with lies at a rate; long captions told again."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError


@pytest.fixture(scope="module")
def things():
    return world.single_objects(120, seed=3)


def test_the_truth_is_told_where_nothing_is_made_up(things):
    told = world.told_things(things)
    for text, scene in zip(told.long, told.scenes, strict=True):
        thing = scene.things[0]
        assert text == f"A {thing.pattern} {thing.colour} {thing.kind}."
    assert told.long == told.short


def test_lies_come_at_their_rate_and_about_what_was_asked(things):
    told = world.told_things(things, 0.5, about=("colour",))
    facts = [fact for caption in told.long_captions for fact in caption.facts]
    assert all(fact.true for fact in facts if fact.attribute != "colour")
    assert 0.35 < np.mean([not fact.true for fact in facts if fact.attribute == "colour"]) < 0.65
    for fact, scene in zip(facts[1::3], told.scenes, strict=True):
        assert fact.true == (fact.value == scene.things[0].colour)


def test_questions_are_wrong_in_one_word(things):
    asked = world.asked_things(things, ("pattern", "kind"))
    assert asked.attribute == ["pattern", "kind"] * 60
    for true, false, old, new in zip(asked.true, asked.false, asked.old, asked.new, strict=True):
        changed = [(a, b) for a, b in zip(true.split(), false.split(), strict=True) if a != b]
        assert [(a.strip("."), b.strip(".")) for a, b in changed] == [(old, new)]


@pytest.mark.parametrize(
    "call",
    [
        lambda things: world.told_things(things, 1.5),
        lambda things: world.told_things(things, about=("size",)),
        lambda things: world.asked_things(things, ("place",)),
    ],
)
def test_what_cannot_be_told_or_asked_is_refused(things, call):
    with pytest.raises(LabError):
        call(things)


def test_told_again_is_as_if_it_had_been_told_so_at_once():
    lying = world.web_pairs(6, seed=5, hallucination=0.4)
    again = world.web_pairs(6, seed=5).retold(0.4)
    assert again.captioners == lying.captioners
    assert again.short == lying.short
    assert again.source == lying.source
    with pytest.raises(LabError, match="part"):
        lying.subset([0, 2]).retold(0.0)
    with pytest.raises(LabError, match="rate"):
        lying.retold(2.0)
