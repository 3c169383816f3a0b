"""Texts of a run: drawn by (seed, epoch, picture) alone, cut at the limit, counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longclip_lab import data, models, world
from longclip_lab.errors import LabError
from longclip_lab.text import split_sentences
from longclip_lab.training import Recipe
from longclip_lab.training.data import (
    Rows,
    StepSampler,
    TrainingPairs,
    captions_of,
    long_texts,
    short_texts,
)

DRAWN = Recipe(batch_size=8, subcaptions=3, seed=4)


@pytest.fixture(scope="module")
def web():
    return world.web_pairs(24, seed=5)


@pytest.fixture(scope="module")
def clip():
    return models.build_lotlip("tiny-tower", "world", 2)


def words(clip, texts, rows):
    """The ids of a batch as lists without padding."""
    batch = texts.batch(rows)
    return [
        ids[:length].tolist() for ids, length in zip(batch.ids_BT, batch.lengths_B, strict=True)
    ]


def test_they_are_the_data_rooms_draw(clip, web):
    texts, drawn = long_texts(clip, web, DRAWN)
    for epoch in (0, 1):
        expected = data.draw_texts(web.captioners, 3, seed=4, epoch=epoch)
        tokens = clip.tokenize(expected.texts)
        ids = words(clip, texts, Rows(range(24), epoch))
        assert ids == [
            row[:n].tolist() for row, n in zip(tokens.ids_BT, tokens.lengths_B, strict=True)
        ]
    assert (drawn.pictures, drawn.fewer, drawn.truncated) == (24, 0, 0)
    assert sum(drawn.by_captioner.values()) == 24


def test_a_draw_depends_on_nothing_before_it(clip, web):
    texts, _ = long_texts(clip, web, DRAWN)
    late = words(clip, texts, Rows([5, 7], 3))
    words(clip, texts, Rows([1, 2], 0))
    assert words(clip, texts, Rows([7, 5], 3)) == late[::-1]
    assert words(clip, texts, Rows([5, 7], 2)) != late
    other, _ = long_texts(clip, web, replace(DRAWN, seed=5))
    assert words(clip, other, Rows([5, 7], 3)) != late


def test_equal_texts_share_a_number_and_no_others(clip, web):
    twins = replace(web, captioners=[web.captioners[i // 2] for i in range(24)])
    whole, _ = long_texts(clip, twins, replace(DRAWN, subcaptions=99, captioners=("painter",)))
    identity_B = whole.batch(Rows(range(24))).identity_B
    assert torch.equal(identity_B[::2], identity_B[1::2])
    assert len(set(identity_B.tolist())) == 12
    assert torch.equal(whole.batch(Rows([6, 3])).identity_B, identity_B[[6, 3]])


def test_all_sub_captions_of_one_captioner(clip, web):
    texts, drawn = long_texts(clip, web, replace(DRAWN, subcaptions="all"))
    more, _ = long_texts(clip, web, replace(DRAWN, subcaptions=99))
    rows = Rows(range(24), 1)
    assert words(clip, texts, rows) == words(clip, more, rows)
    assert drawn.fewer == 0
    assert len(drawn.by_captioner) == 3


def test_fewer_sub_captions_than_asked_for_are_counted(clip, web):
    brief = [{"a": "A boat. A tree.", "b": "A boat. A tree. A car. A cup."} for _ in range(24)]
    _, drawn = long_texts(clip, replace(web, captioners=brief), DRAWN)
    assert drawn.fewer == drawn.by_captioner["a"] > 0


def test_the_token_limit_cuts_and_counts(clip, web):
    texts, drawn = long_texts(clip, web, replace(DRAWN, token_limit=16))
    batch = texts.batch(Rows(range(24)))
    assert batch.lengths_B.max() == 16
    assert drawn.truncated == int((batch.lengths_B == 16).sum()) > 0
    whole, count = long_texts(clip, web, replace(DRAWN, subcaptions=None, token_limit=32))
    assert whole.num_truncated == count.truncated == 24
    assert TrainingPairs(clip, web, replace(DRAWN, token_limit=16)).num_truncated["long"] > 0


def test_rewrites_come_from_the_captions_of_the_picture(clip, web):
    texts = short_texts(clip, web, Recipe(rewrites=True))
    seen = {tuple(words(clip, texts, Rows([2], epoch))[0]) for epoch in range(30)}
    known = clip.tokenize(web.captions[2])
    known = {tuple(row[:n].tolist()) for row, n in zip(known.ids_BT, known.lengths_B, strict=True)}
    assert seen == known


def test_debias_clip_reads_no_summary(clip, web):
    texts = short_texts(clip, web, Recipe(objective="debias-clip"))
    summary = split_sentences(web.long[2])[0]
    first = clip.tokenize(web.long[2][slice(*summary)]).ids_BT[0]
    first = first[1 : int((first != 0).sum()) - 1].tolist()
    drawn = [words(clip, texts, Rows([2], epoch))[0] for epoch in range(20)]
    assert len({tuple(ids) for ids in drawn}) > 10
    assert not any(ids[1 : len(first) + 1] == first for ids in drawn)


def test_one_captioner_or_some(web):
    chosen = captions_of(web, ("reporter", "painter"))
    assert list(chosen[0]) == ["reporter", "painter"]
    plain = world.pairs(3, seed=5)
    assert captions_of(plain) == [{"long": text} for text in plain.long]
    with pytest.raises(LabError, match=r"no captioner 'surveyer'. Did you mean surveyor"):
        captions_of(web, ("surveyer",))
    holes = replace(web, captioners=[{"surveyor": "A boat."}, *web.captioners[1:]])
    with pytest.raises(LabError, match="Picture 0 has no long caption by painter"):
        captions_of(holes, ("painter",))


def test_a_batch_knows_its_epoch():
    sampler = StepSampler(Recipe(batch_size=8), torch.zeros(24).numpy(), 2, 7)
    assert [rows.epoch for rows in sampler] == [0, 1, 1, 1, 2]
