"""The world keeps its promises: every fact is true, at its place, and visible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer
from longclip_lab.world.captions import words_of, world_words
from longclip_lab.world.scene import move

seeds = st.integers(0, 2**31)


def scene_of(seed: int) -> world.Scene:
    return world.random_scene(np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, captioner=st.sampled_from(sorted(world.CAPTIONERS)))
def test_every_fact_names_its_words_its_tokens_and_the_truth(seed, captioner):
    scene = scene_of(seed)
    caption = world.long_caption(scene, np.random.default_rng(seed), captioner)
    tokenized = get_tokenizer("world").tokenize(caption.text)
    assert len(tokenized.ids) + 2 == caption.num_tokens
    for fact in caption.facts:
        assert caption.text[slice(*fact.span)].lower() == fact.value
        start, end = fact.tokens  # position 0 is the start token
        first, last = tokenized.spans[start - 1], tokenized.spans[end - 2]
        assert caption.text[first[0] : last[1]].lower() == fact.value
        if fact.attribute not in ("relation", "ground", "sky", "light", "count"):
            assert getattr(scene.things[fact.thing], fact.attribute) == fact.value


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_relations_agree_with_the_boxes(seed):
    scene = scene_of(seed)
    for one in scene.things:
        for other in scene.things:
            found = world.relation(one, other)
            if found == "left of":
                assert one.cell % 3 < other.cell % 3
                assert world.relation(other, one) == "right of"
            if found == "above":
                assert one.y < other.y


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_summaries_never_mention_what_only_details_say(seed):
    text = world.summary(scene_of(seed)).text.lower()
    hidden = {*world.PATTERNS, *world.ORIENTATIONS, *world.SIZES, "left", "above", "below"}
    assert not hidden & set(words_of(text))


def test_sizes_of_captions():
    pairs = world.pairs(200)
    long = [caption.num_tokens for caption in pairs.long_captions]
    assert 100 <= min(long) <= max(long) <= 200
    short = [len(words_of(text)) + 2 for text in pairs.short]
    assert max(short) <= 21
    assert len(set(pairs.short)) == len(pairs)


def test_same_seed_same_pixels_and_a_larger_set_begins_with_the_smaller():
    small, large, other = world.pairs(5, seed=9), world.pairs(8, seed=9), world.pairs(5, seed=10)
    assert np.array_equal(small.images, large.images[:5])
    assert small.long == large.long[:5]
    assert not np.array_equal(small.images, other.images)


def test_the_vocabulary_file_holds_exactly_the_words_of_the_world():
    tokenizer = get_tokenizer("world")
    assert tokenizer.vocab_size == len(world_words()) + 3
    for word in (*world_words(), *" ".join(world.TEMPLATES).replace("{}", "").split()):
        tokenizer.tokenize(word)


@pytest.mark.parametrize("attribute", ["kind", "colour", "pattern", "orientation"])
def test_each_value_of_an_attribute_looks_different_even_on_small_things(attribute):
    scene = scene_of(3)
    index = next(i for i, t in enumerate(scene.things) if t.size == "small")
    # Nothing may cover the small thing: it stays alone with the background.
    alone = world.Scene(scene.ground, scene.sky, scene.light, (scene.things[index],))
    alone = alone.change(0, orientation="upright", pattern="striped", colour="red", kind="car")
    pictures = {
        value: np.asarray(world.draw(alone.change(0, **{attribute: value})), float)
        for value in world.classes(attribute)
    }
    x0, y0, x1, y1 = (round(v) for v in alone.things[0].box())
    values = list(pictures)
    for i, one in enumerate(values):
        for other in values[:i]:
            difference = np.abs(pictures[one] - pictures[other])
            assert difference[y0:y1, x0:x1].mean() > 4
            outside = difference.copy()
            outside[max(0, y0 - 3) : y1 + 4, max(0, x0 - 3) : x1 + 4] = 0
            assert outside.max() == 0  # the box holds the whole thing, its shadow beside it


def test_siblings_share_their_summary_and_nothing_else():
    pairs = world.pairs(12, seed=5, siblings=4)
    for start in range(0, 12, 4):
        assert len(set(pairs.short[start : start + 4])) == 1
        assert len(set(pairs.long[start : start + 4])) == 4
        for scene in pairs.scenes[start : start + 4]:
            assert len({thing.kind for thing in scene.things}) == len(scene.things)
    assert len(set(pairs.short)) == 3
    with pytest.raises(LabError, match="siblings must be a whole number from 1"):
        world.pairs(4, siblings=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_counterfactuals_change_exactly_the_words_at_the_position(seed):
    asked = world.counterfactuals(6, seed=seed)
    tokenizer = get_tokenizer("world")
    for i in range(len(asked)):
        true, false = (words_of(t[i].lower()) for t in (asked.true, asked.false))
        assert asked.old[i] != asked.new[i]
        first = next(k for k, (a, b) in enumerate(zip(true, false, strict=False)) if a != b)
        old = words_of(asked.old[i])
        start = asked.position[i] - 1
        assert true[start : start + len(old)] == old
        assert start <= first < start + max(len(old), len(words_of(asked.new[i])))
        tokenizer.tokenize(asked.false[i])


def test_a_wrong_kind_is_nowhere_in_the_picture():
    asked = world.counterfactuals(50, attributes=["kind"])
    for scene, new in zip(asked.scenes, asked.new, strict=True):
        assert new not in {thing.kind for thing in scene.things}


def test_hallucination_rate_is_the_share_of_false_facts():
    scenes = [scene_of(i) for i in range(60)]
    told = [
        world.long_caption(s, np.random.default_rng(i), hallucination=0.3)
        for i, s in enumerate(scenes)
    ]
    facts = [f for caption in told for f in caption.facts if f.thing >= 0]
    detail = [f for caption in told for s in caption.sentences[1:] for f in s.facts if f.thing >= 0]
    assert sum(not f.true for f in detail) / len(detail) == pytest.approx(0.3, abs=0.03)
    assert all(f.true for caption in told for f in caption.sentences[0].facts)
    assert len(facts) > len(detail)


def test_moving_a_thing_moves_its_box():
    scene = scene_of(1)
    free = next(c for c in range(9) if c not in {t.cell for t in scene.things})
    moved = move(scene, 0, free, np.random.default_rng(0))
    assert moved.things[0].cell == free
    assert moved.things[0].box() != scene.things[0].box()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: world.pairs(0), "whole number from 1"),
        (lambda: world.pairs(1, captioner="painte"), "painter"),
        (lambda: world.pairs(1, hallucination=1.5), "0 to 1"),
        (lambda: world.classes("color"), "colour"),
        (lambda: world.counterfactuals(2, attributes=["texture"]), "attributes of the world"),
        (lambda: world.random_scene(np.random.default_rng(0), 9), "1 to 8"),
    ],
)
def test_bad_input_gets_one_clear_message(call, said):
    with pytest.raises(LabError, match=said):
        call()
