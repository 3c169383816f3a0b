"""What a fact should say, and writers whose lies are always the same."""

from __future__ import annotations

import pytest

from longclip_lab import world
from longclip_lab.errors import LabError

WRITERS = {"pattern": 2, "colour": 3, "kind": 3}


@pytest.mark.parametrize("captioner", world.CAPTIONERS)
def test_a_fact_is_true_where_it_says_what_is_so(captioner):
    lying = world.pairs(12, captioner=captioner, hallucination=0.4)
    facts = [
        (fact, scene)
        for caption, scene in zip(lying.long_captions, lying.scenes, strict=True)
        for fact in caption.facts
    ]
    told = {fact.attribute for fact, _ in facts} | {"relation"}  # the reporter tells of none
    assert told >= {*world.ATTRIBUTES, "ground", "sky", "light", "count"}
    assert all(fact.true == (fact.value == world.truth(fact, scene)) for fact, scene in facts)


@pytest.mark.parametrize(("attribute", "writers"), WRITERS.items())
def test_writers_have_different_lies_and_no_value_has_two(attribute, writers):
    values = world.ATTRIBUTES[attribute]
    told = [[world.habitual_lie(attribute, v, w) for v in values] for w in range(writers)]
    assert all(sorted(row) == sorted(values) for row in told)
    for column, value in zip(zip(*told, strict=True), values, strict=True):
        assert len({value, *column}) == writers + 1
    with pytest.raises(LabError, match=f"got {writers}"):
        world.habitual_lie(attribute, values[0], writers)


def test_habits_are_what_is_told_and_asked_for():
    things = world.single_objects(60, seed=3)
    told = world.told_things(things, 0.5, about=("colour",), habits=(0, 2))
    for i, (caption, scene) in enumerate(zip(told.long_captions, told.scenes, strict=True)):
        fact, colour = caption.facts[1], scene.things[0].colour
        lie = world.habitual_lie("colour", colour, (0, 2)[i % 2])
        assert fact.value == (colour if fact.true else lie)
    asked = world.asked_things(things, ("colour",), habit=2)
    assert asked.new == [world.habitual_lie("colour", old, 2) for old in asked.old]
    with pytest.raises(LabError, match="rust"):
        world.habitual_lie("colour", "rust")
