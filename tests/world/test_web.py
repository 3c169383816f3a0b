"""Alt-texts and several captioners: the same pictures, noise at the rate asked for, rewrites."""

from __future__ import annotations

import re

import numpy as np
import pytest

from longclip_lab import data, world
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer

WORDS = re.compile(r"\w+")


@pytest.fixture(scope="module")
def web():
    return world.web_pairs(60, seed=5, noise=0.5)


def facts(text):
    """The words of a caption that say something."""
    return {*WORDS.findall(text.lower())} & {
        *world.KINDS, *world.COLOURS, *world.GROUNDS, *world.SKIES, *world.SIZES,
    }  # fmt: skip


def test_pictures_and_surveys_are_those_of_pairs(web):
    plain = world.pairs(60, seed=5)
    assert np.array_equal(web.images, plain.images)
    assert [by["surveyor"] for by in web.captioners] == plain.long == web.long


def test_everything_is_said_in_words_of_the_world(web):
    tokenizer = get_tokenizer("world")
    for texts, by in zip(web.captions, web.captioners, strict=True):
        for text in (*texts, *by.values()):
            tokenizer.encode(text)
    assert len({len(texts) for texts in web.captions}) == 1


def test_noise_is_the_share_that_tells_of_another_picture():
    clean, lies = world.web_pairs(40, seed=5, noise=0.0), world.web_pairs(40, seed=5, noise=1.0)
    assert clean.fits.all()
    assert not lies.fits.any()
    assert 0.3 < world.web_pairs(60, seed=5, noise=0.5).fits.mean() < 0.7
    for pairs, right in ((clean, 1.0), (lies, 0.5)):
        shares = []
        for text, scene in zip(pairs.short, pairs.scenes, strict=True):
            named = facts(text) & set(world.KINDS)
            shares.append(len(named & {thing.kind for thing in scene.things}) / len(named))
        assert np.mean(shares) == 1 if right == 1 else np.mean(shares) < 0.9


def test_what_is_asked_of_one_text_changes_no_other(web):
    one = world.web_pairs(60, seed=5, captioners=["painter"], noise=0.5)
    assert one.short == web.short
    assert [by["painter"] for by in web.captioners] == [by["painter"] for by in one.captioners]
    lying = world.web_pairs(60, seed=5, hallucination=0.5, noise=0.5)
    assert lying.short == web.short
    assert lying.long != web.long
    assert len({pairs.source["hash"] for pairs in (web, one, lying)}) == 3


def test_rewrites_keep_the_facts_and_change_the_words(web):
    changed = 0
    for raw, *rewrites in web.captions:
        assert len(rewrites) == 4
        for text in rewrites:
            assert facts(text) == facts(raw)
            assert text.endswith(".")
            assert text[0].isupper()
            changed += text != raw
    assert changed > 0.5 * 4 * len(web)


def test_draws_are_of_the_captioner_chosen(web):
    drawn = data.draw_texts(web.captioners, 3)
    assert set(drawn.by_captioner) == {"surveyor", "painter", "reporter"}
    assert drawn.fewer == 0
    assert data.draw_texts(web.captioners, 99).fewer == len(web)


def test_a_part_of_it(web):
    part = web.subset([3, 1])
    assert part.short == [web.short[3], web.short[1]]
    assert part.captioners == [web.captioners[3], web.captioners[1]]
    assert part.captions[1] == web.captions[1]
    assert part.fits.tolist() == [web.fits[3], web.fits[1]]
    assert part.source["subset"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captioners": ["paintr"]}, "Did you mean painter"),
        ({"captioners": []}, "at least one captioner"),
        ({"noise": 1.5}, "noise must be a finite number from 0 to 1"),
        ({"hallucination": -1}, "hallucination rate"),
        ({"siblings": 0}, "siblings must be a whole number from 1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(LabError, match=message):
        world.web_pairs(2, **options)
