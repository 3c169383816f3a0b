"""Overshadowing of models whose texts and pictures are sums of words, where it is known exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from longclip_lab import views, world
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, encode_images, encode_texts, graft, new_tiny
from longclip_lab.probing import overshadowing, presence_readout
from longclip_lab.probing.overshadowing import SCORES
from longclip_lab.text import get_tokenizer

WORDS = (*world.KINDS, *world.COLOURS)


@dataclass
class Bag(Clip):
    """Texts and pictures are weighted sums of one axis a word.

    `place` gives the weight of a word from its token and whether it is said to be small; `small`
    is the weight of things that are not large in pictures.
    """

    place: object = staticmethod(lambda token, small: 1.0)
    small: float = 1.0
    seen: dict = field(default_factory=dict)

    context_length = 77
    vocab_size = get_tokenizer("world").vocab_size
    image_size = world.PIXELS
    image_mean = image_std = (0.5, 0.5, 0.5)
    device = torch.device("cpu")

    def encode_text(self, tokens_BT):
        words = [None, *self.tokenizer.words]
        out_BD = torch.zeros(len(tokens_BT), len(WORDS))
        for row_D, tokens_T in zip(out_BD, tokens_BT.tolist(), strict=True):
            small = False
            for place, token in enumerate(tokens_T):
                word = words[token] if token < len(words) else None
                small = word == "small" or (small and word != "large")
                if word in WORDS:
                    row_D[WORDS.index(word)] += self.place(place, small)
        return out_BD

    def encode_image(self, pixels_B3HW):
        return torch.stack([self.seen[one.numpy().tobytes()] for one in pixels_B3HW])

    def look_at(self, swaps):
        """Learn what is in the pictures."""
        from longclip_lab.models import pixels

        for images, scenes in zip(swaps.images, swaps.scenes, strict=True):
            for one, scene in zip(pixels(self, images), scenes, strict=True):
                feature_D = torch.zeros(len(WORDS))
                for thing in scene.things:
                    weight = 1.0 if thing.size == "large" else self.small
                    feature_D[WORDS.index(thing.kind)] += weight
                    feature_D[WORDS.index(thing.colour)] += weight
                self.seen[one.numpy().tobytes()] = feature_D
        return self


class Empty(nn.Module):
    text_pool_type = "of its own"


@pytest.fixture(scope="module")
def swaps():
    return world.swaps(12)


@pytest.fixture(scope="module")
def bag(swaps):
    return lambda **made: Bag(Empty(), get_tokenizer("world"), None, "bag", {}, **made).look_at(
        swaps
    )


def values(found) -> dict[str, float]:
    return {name: found.score(name).value for name in SCORES}


def test_each_thing_is_the_large_one_once_and_nothing_else_changes(swaps):
    for n, (one, other) in enumerate(swaps.scenes):
        large, lesser = swaps.places[n]
        assert one.things[large].kind == other.things[lesser].kind
        assert one.things[lesser].colour == other.things[large].colour
        assert (one.things[large].size, one.things[lesser].size) == ("large", "small")
        kept = [i for i in range(len(one.things)) if i not in (large, lesser)]
        assert all(one.things[i] == other.things[i] for i in kept)
        boxes = [[scene.things[i].box() for i in (large, lesser)] for scene in (one, other)]
        assert boxes[0] == boxes[1] == list(swaps.boxes(n))
        a, b = boxes[0]
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


@pytest.mark.parametrize("form", world.FORMS)
def test_texts_name_both_things_at_their_spans_and_changed_words_are_wrong(swaps, form):
    for n, first in ((0, 0), (1, 1), (2, 0)):
        told = swaps.told(n, 0, first, form)
        assert [told.text[a:b] for a, b in told.spans] == [
            swaps.phrase(n, first),
            swaps.phrase(n, 1 - first),
        ]
        present = {thing.kind for thing in swaps.scenes[n][0].things}
        changed = swaps.told(n, 0, first, form, changed=1)
        words = [world.captions.words_of(one.text) for one in (told, changed)]
        ((old, new),) = [(a, b) for a, b in zip(*words, strict=True) if a != b]
        assert old == swaps.thing(n, 1).kind
        assert new not in present
        same = swaps.told(n, 1, first, form).text == told.text
        assert same == (form != "sizes told")


def test_questions_are_the_same_texts_with_the_token_that_changes(swaps):
    for form, change in (("one sentence", "kind"), ("two sentences", "colour")):
        asked = swaps.questions(form, change)
        assert len(asked) == 8 * len(swaps)
        for true, false, at, old, new in zip(
            asked.true, asked.false, asked.position, asked.old, asked.new, strict=True
        ):
            words = [world.captions.words_of(text) for text in (true, false)]
            assert [one[at - 1] for one in words] == [old, new]
            assert sum(a != b for a, b in zip(*words, strict=True)) == 1


def test_a_bag_of_words_has_its_closed_form(bag, swaps):
    found = overshadowing(bag(), swaps)
    assert found.shifts == pytest.approx(1 / 4)  # one of four words of the same weight
    assert found.shifts_alone == pytest.approx(1 / 2)
    got = values(found)
    assert got["text: lesser / large"] == pytest.approx(1)
    assert got["text: first / second"] == pytest.approx(1)
    assert got["right: large"] == got["right: lesser"] == 1
    assert got["size: lesser - large"] == got["company: lesser"] == got["order: lesser"] == 0
    assert found.score("right: large").low < 1  # Wilson's, as a bootstrap has no width here


def test_a_tower_that_weighs_what_comes_first_does_so_for_both_sizes(bag, swaps):
    found = overshadowing(bag(place=lambda token, small: 3.0 if token < 5 else 1.0), swaps)
    got = values(found)
    # weights 3, 3, 1, 1: cosines after a change are 11/20 and 19/20
    assert got["text: first / second"] == pytest.approx(9)
    assert got["text: lesser / large"] == pytest.approx(1)
    assert got["right: lesser"] == 1


def test_a_tower_that_reads_what_comes_first_only_loses_half_in_company(bag, swaps):
    got = values(overshadowing(bag(place=lambda token, small: float(token < 5)), swaps))
    assert got["right: lesser, alone"] == 1
    assert got["right: lesser"] == got["right: large"] == 0.75  # the second word is a coin's toss
    assert got["order: lesser"] == got["order: large"] == 0.5
    assert got["company: lesser"] == -0.25


def test_a_text_tower_that_ignores_what_is_called_small(bag, swaps):
    deaf = bag(place=lambda token, small: 0.0 if small else 1.0)
    got = values(overshadowing(deaf, swaps, form="sizes told"))
    assert got["text: lesser / large"] < 1e-5
    assert (got["right: large"], got["right: lesser"]) == (1, 0.5)
    assert got["company: lesser"] == -0.5
    untold = values(overshadowing(deaf, swaps))
    assert untold["right: lesser"] == 1


def test_a_blind_picture_is_no_matter_of_company(bag, swaps):
    got = values(overshadowing(bag(small=0.0), swaps))
    assert got["right: lesser"] == got["right: lesser, alone"] == 0.5
    assert got["size: lesser - large"] == -0.5
    assert got["company: lesser"] == 0
    assert got["forgiven: lesser"] == 1
    assert got["text: lesser / large"] == pytest.approx(1)


def test_paired_differences_and_records(bag, swaps):
    seeing, blind = (overshadowing(bag(small=w), swaps) for w in (1.0, 0.0))
    assert seeing.against(blind, "right: lesser").value == 0.5
    assert seeing.against(seeing, "text: first / second").value == 1
    assert set(blind.to_dict()["scores"]) == set(SCORES)
    rows = blind.table().set_index("score")
    assert rows.loc["right: lesser", "value"] == 50
    assert rows.loc["text: lesser / large", "neutral"] == 1
    with pytest.raises(LabError, match="the same questions"):
        seeing.against(overshadowing(bag(), swaps, change="colour"), "right: lesser")
    with pytest.raises(LabError, match="right: lesser"):
        seeing.score("right: leser")


def test_texts_that_are_cut_are_refused(swaps):
    short = new_tiny(context_length=12)
    with pytest.raises(LabError, match="reads whole"):
        overshadowing(short, swaps, form="long")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: world.swaps(0), "whole number from 1"),
        (lambda: world.swaps(3, lesser="large"), "medium or small"),
        (lambda: world.swaps(1).told(0, 0, 0, "a poem"), "names two things"),
        (lambda: world.swaps(1).phrase(0, 0, "size"), "kind or a colour"),
    ],
)
def test_bad_questions(ask, told):
    with pytest.raises(LabError, match=told):
        ask()


def test_a_larger_set_begins_with_the_smaller_one():
    few, many = world.swaps(3, lesser="medium"), world.swaps(9, lesser="medium")
    assert np.array_equal(few.images, many.images[:3])
    assert few.absent == many.absent[:3]


def test_readouts_find_what_features_hold_and_nothing_else():
    scenes = world.pairs(240).scenes
    kinds = [[t.kind for t in s.things if t.size == "large"] for s in scenes]
    features_ND = np.array([[kind in row for kind in world.KINDS] for row in kinds], dtype=float)
    features_ND += np.random.default_rng(0).normal(scale=0.1, size=features_ND.shape)
    found = presence_readout(features_ND, scenes)
    assert found.score("large").value > 0.99
    low, high = found.score("small").low, found.score("small").high
    assert low < 0.6
    assert high > 0.4
    assert found.against(found, "small").value == 0
    assert list(found.table()["size"]) == ["large", "medium", "small"]
    with pytest.raises(LabError, match="a feature for every scene"):
        presence_readout(features_ND[:5], scenes)


def test_a_graft_sees_with_the_one_and_reads_with_the_other(swaps):
    one, other = new_tiny(seed=0), new_tiny(seed=1)
    both = graft(one, other)
    images = swaps.images[:, 0]
    assert torch.equal(encode_images(both, images), encode_images(other, images))
    texts = [swaps.alone(0, 0)]
    assert torch.equal(encode_texts(both, texts).features_ND, encode_texts(one, texts).features_ND)
    other.card = {**other.card, "preprocess": {**other.card["preprocess"], "size": 80}}
    with pytest.raises(LabError, match="preprocessing"):
        graft(one, other)


def test_figures_say_what_the_numbers_say(bag, swaps):
    def title(chart):
        return chart.layout.title.text.replace("<br>", " ").replace("\u00a0", " ")

    seeing, blind = (overshadowing(bag(small=w), swaps) for w in (1.0, 0.0))
    assert "costs the small one's nothing" in title(seeing.plot())
    assert "hardly knows even where it is named alone: 50.0%" in title(blind.plot())
    deaf = overshadowing(bag(place=lambda token, small: float(token < 5)), swaps)
    assert "costs the small one's 25.0 points" in title(deaf.plot())
    both = views.overshadowing_figure({"before": blind, "after": seeing})
    assert title(both) == "“after” is better on small things (50% → 100%)"
    with pytest.raises(LabError, match="at least one"):
        views.overshadowing_figure({})
    assert replace(seeing, lesser="medium").plot()
