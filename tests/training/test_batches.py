"""Batches: a function of (seed, epoch, step), shared out evenly, without waste."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longclip_lab import models
from longclip_lab.errors import LabError
from longclip_lab.training import Recipe
from longclip_lab.training.data import (
    CaptionSampler,
    StepSampler,
    TokenBatch,
    TrainingPairs,
    epoch_order,
    joined,
)

LENGTHS = np.random.default_rng(0).integers(5, 248, 1000)


@given(st.integers(2, 40), st.integers(40, 200), st.booleans(), st.integers(0, 5))
def test_an_epoch_shows_every_pair_at_most_once(batch_size, count, grouped, epoch):
    recipe = Recipe(batch_size=batch_size, length_grouped=grouped)
    order = epoch_order(recipe, LENGTHS[:count], epoch)
    assert len(order) == count // batch_size * batch_size
    assert len(set(order.tolist())) == len(order)
    assert order.min() >= 0
    assert order.max() < count


@given(st.integers(1, 6), st.integers(2, 5), st.integers(60, 150))
def test_siblings_stay_together_in_a_batch(siblings, runs, count):
    recipe = Recipe(batch_size=siblings * runs, hard_negative_group=siblings)
    order = epoch_order(recipe, LENGTHS[:count], 0)
    assert len(order) == count // recipe.batch_size * recipe.batch_size
    for run in order.reshape(-1, siblings):
        assert run.tolist() == list(range(run[0], run[0] + siblings))
        assert run[0] % siblings == 0


def test_order_depends_on_seed_and_epoch():
    recipe = Recipe()
    first = epoch_order(recipe, LENGTHS, 0)
    assert np.array_equal(first, epoch_order(recipe, LENGTHS, 0))
    assert not np.array_equal(first, epoch_order(recipe, LENGTHS, 1))
    assert not np.array_equal(first, epoch_order(replace(recipe, seed=1), LENGTHS, 0))


@given(st.integers(0, 24), st.booleans())
def test_sampling_from_a_later_step_gives_the_same_batches(first, grouped):
    recipe = Recipe(batch_size=64, length_grouped=grouped)
    whole = list(StepSampler(recipe, LENGTHS[:400], 0, 25))
    assert list(StepSampler(recipe, LENGTHS[:400], first, 25)) == whole[first:]


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_all_processes_are_the_global_batch(processes):
    recipe = Recipe(batch_size=64)
    whole = list(StepSampler(recipe, LENGTHS, 0, 20))
    shares = [list(StepSampler(recipe, LENGTHS, 0, 20, r, processes)) for r in range(processes)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


def test_length_grouping_saves_padding():
    def padding(recipe):
        order = epoch_order(recipe, LENGTHS, 0).reshape(-1, recipe.batch_size)
        return sum(LENGTHS[rows].max() * len(rows) - LENGTHS[rows].sum() for rows in order)

    recipe = Recipe(batch_size=25)
    assert padding(replace(recipe, length_grouped=True)) < padding(recipe) / 5


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_a_ragged_batch_gives_any_of_its_texts(lengths, data):
    texts = [torch.arange(100 * i, 100 * i + n) for i, n in enumerate(lengths)]
    batch = TokenBatch(torch.cat(texts), torch.tensor(lengths), torch.arange(len(texts)))
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=9))
    some = batch.select(rows)
    assert torch.equal(some.ids_P, torch.cat([texts[row] for row in rows]))
    assert some.identity_B.tolist() == rows
    padded = torch.nn.utils.rnn.pad_sequence([texts[row] for row in rows], True, -1)
    assert torch.equal(some.padded(-1), padded)
    assert all(map(torch.equal, joined([batch, some]).select(range(len(texts))), batch))


def test_token_ids_are_the_tokenizers_without_its_padding(tiny, few):
    texts, truncated = CaptionSampler(tiny, Recipe()).tokenize(few.long)
    expected = tiny.tokenize(few.long)
    assert torch.equal(texts.lengths_B, expected.lengths_B)
    assert torch.equal(texts.padded(0), expected.ids_BT[:, : int(expected.lengths_B.max())])
    assert truncated == 0


def test_what_does_not_fit_is_cut_and_counted(few):
    whole = TrainingPairs(models.new_tiny(context_length=248), few)
    cut = TrainingPairs(models.new_tiny(context_length=30), few)
    assert cut.num_truncated["long"] == (whole.lengths > 30).sum() > 0
    assert cut.lengths.max() == 30


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_the_pictures_of_their_texts(tiny, few, tmp_path, workers):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(len(few.images))]
    for path, image in zip(paths, few.images, strict=True):
        Image.fromarray(image).save(path)
    recipe = Recipe(batch_size=8, workers=workers)
    from_files = TrainingPairs(tiny, replace(few, images=paths), recipe)
    for step, batch in enumerate(from_files.batches(0, 2)):
        rows = from_files.members(step)
        assert torch.allclose(batch.pixels_B3HW, models.pixels(tiny, few.images[rows]), atol=1e-6)
        assert torch.equal(batch.short.ids_P, from_files.texts("short", rows).ids_P)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short": ["a red boat"]}, "24 pictures, 1 short and 24 long"),
        ({"short": [" "] * 24}, r"short text of pair 0 is empty \(24 are\)"),
        ({"images": [], "short": [], "long": []}, "no pairs"),
    ],
)
def test_unfit_data_are_refused(tiny, few, change, message):
    with pytest.raises(LabError, match=message):
        TrainingPairs(tiny, replace(few, **change))


def test_data_without_long_texts_are_refused(tiny):
    with pytest.raises(LabError, match=r"dict has no \.images"):
        TrainingPairs(tiny, {})
