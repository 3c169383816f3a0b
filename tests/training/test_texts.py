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
    BatchIndices,
    StepSampler,
    TrainingPairs,
    captions_of,
)

DRAWN = Recipe(batch_size=8, subcaptions=3, seed=4)


@pytest.fixture(scope="module")
def web():
    return world.web_pairs(24, seed=5)


@pytest.fixture(scope="module")
def clip():
    return models.build_lotlip("tiny-tower", "world", 2)


def words(pairs, rows, which="long"):
    """The ids of a batch as lists."""
    batch = pairs.texts(which, rows)
    return [ids.tolist() for ids in batch.ids_P.split(batch.lengths_B.tolist())]


def tokens(clip, texts):
    """The ids of texts as lists, by the model's own tokenizer."""
    whole = clip.tokenize(texts)
    return [row[:n].tolist() for row, n in zip(whole.ids_BT, whole.lengths_B, strict=True)]


def test_they_are_the_data_rooms_draw(clip, web):
    pairs = TrainingPairs(clip, web, DRAWN)
    for epoch in (0, 1):
        expected = data.draw_texts(web.captioners, 3, seed=4, epoch=epoch)
        assert words(pairs, BatchIndices(range(24), epoch)) == tokens(clip, expected.texts)
    drawn = pairs.drawn
    assert (drawn.pictures, drawn.fewer, drawn.truncated) == (24, 0, 0)
    assert sum(drawn.by_captioner.values()) == 24


def test_a_draw_depends_on_nothing_before_it(clip, web):
    pairs = TrainingPairs(clip, web, DRAWN)
    late = words(pairs, BatchIndices([5, 7], 3))
    words(pairs, BatchIndices([1, 2], 0))
    assert words(pairs, BatchIndices([7, 5], 3)) == late[::-1]
    assert words(pairs, BatchIndices([5, 7], 2)) != late
    other = TrainingPairs(clip, web, replace(DRAWN, seed=5))
    assert words(other, BatchIndices([5, 7], 3)) != late


def test_equal_texts_share_a_number_and_no_others(clip, web):
    twins = replace(web, captioners=[web.captioners[i // 2] for i in range(24)])
    whole = TrainingPairs(clip, twins, replace(DRAWN, subcaptions=99, captioners=("painter",)))
    identity_B = whole.texts("long", BatchIndices(range(24))).identity_B
    assert torch.equal(identity_B[::2], identity_B[1::2])
    assert len(set(identity_B.tolist())) == 12
    assert torch.equal(whole.texts("long", [6, 3]).identity_B, identity_B[[6, 3]])


def test_all_sub_captions_of_one_captioner(clip, web):
    whole = TrainingPairs(clip, web, replace(DRAWN, subcaptions="all"))
    more = TrainingPairs(clip, web, replace(DRAWN, subcaptions=99))
    rows = BatchIndices(range(24), 1)
    assert words(whole, rows) == words(more, rows)
    assert whole.drawn.fewer == 0
    assert len(whole.drawn.by_captioner) == 3


def test_fewer_sub_captions_than_asked_for_are_counted(clip, web):
    brief = [{"a": "A boat. A tree.", "b": "A boat. A tree. A car. A cup."} for _ in range(24)]
    drawn = TrainingPairs(clip, replace(web, captioners=brief), DRAWN).drawn
    assert drawn.fewer == drawn.by_captioner["a"] > 0


def test_the_token_limit_cuts_and_counts(clip, web):
    pairs = TrainingPairs(clip, web, replace(DRAWN, token_limit=16))
    lengths_B = pairs.texts("long", BatchIndices(range(24))).lengths_B
    assert lengths_B.max() == 16
    assert pairs.drawn.truncated == int((lengths_B == 16).sum()) > 0
    assert pairs.num_truncated["long"] > 0
    whole = TrainingPairs(clip, web, replace(DRAWN, subcaptions=None, token_limit=32))
    assert whole.num_truncated["long"] == whole.drawn.truncated == 24


def test_rewrites_come_from_the_captions_of_the_picture(clip, web):
    pairs = TrainingPairs(clip, web, Recipe(rewrites=True))
    seen = {tuple(words(pairs, BatchIndices([2], epoch), "short")[0]) for epoch in range(30)}
    assert seen == set(map(tuple, tokens(clip, web.captions[2])))


def test_debias_clip_reads_no_summary(clip, web):
    pairs = TrainingPairs(clip, web, Recipe(objective="debias-clip"))
    (summary,) = tokens(clip, [web.long[2][slice(*split_sentences(web.long[2])[0])]])
    first = summary[1:-1]
    drawn = [words(pairs, BatchIndices([2], epoch), "short")[0] for epoch in range(20)]
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
