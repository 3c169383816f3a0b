"""The probes say what is known of models whose reading is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.models import encode_images, encode_texts, new_tiny, stretch
from longclip_lab.probing import (
    TruncationCurve,
    counterfactual_probe,
    lengths_of,
    pair_scores,
    randomise_positions,
    truncation_curve,
    wilson,
)


@pytest.fixture(scope="module")
def clip():
    return new_tiny(seed=0)


def curve_of(scores: list[float], cuts: tuple[int, ...], n: int = 2000) -> TruncationCurve:
    """A curve whose hits are nested, as a reader's are that only gains by reading on."""
    draws = np.random.default_rng(0).uniform(size=n)
    hits = np.array([(draws < score).astype(float) for score in scores])
    return TruncationCurve("made", cuts, {"as written": hits}, {}, {}, {})


@given(wins=st.integers(0, 60), losses=st.integers(0, 60))
def test_wilson_is_scipys(wins, losses):
    if wins + losses == 0:
        return
    expected = binomtest(wins, wins + losses).proportion_ci(0.95, method="wilson")
    found = wilson(wins, wins + losses)
    assert found.low == pytest.approx(expected.low, abs=1e-6)
    assert found.high == pytest.approx(expected.high, abs=1e-6)


def test_lengths_of_a_reader_that_stops_at_20():
    curve = curve_of([0.1, 0.4, 0.6, 0.6, 0.6], (5, 10, 20, 40, 80))
    lengths = lengths_of(curve, "as written")
    assert lengths["plateau"].value == 20
    assert lengths["plateau"].low == lengths["plateau"].high == 20
    assert lengths["half"].value == 10
    assert lengths["marginal gain"].value == 20
    assert lengths["last gain"].value == 20


def test_lengths_of_a_reader_that_reads_on():
    curve = curve_of([0.1, 0.3, 0.5, 0.7, 0.9], (5, 10, 20, 40, 80))
    lengths = lengths_of(curve, "as written")
    assert lengths["plateau"].value == lengths["last gain"].value == 80


def test_what_lies_behind_the_context_is_counted_as_unread_and_as_half_a_win(clip):
    asked = world.counterfactuals(60)
    found = counterfactual_probe(clip, asked)
    behind = asked.position > clip.context_length - 2
    assert behind.any()
    assert found.unread[behind].all()
    assert found.accuracy(behind).value == 0.5
    assert not found.unread[asked.position < clip.context_length - 8].any()
    table = found.table(["size"])
    assert table["pairs"].sum() == 60
    assert table["unread"].sum() == found.unread.sum()


def test_a_table_may_leave_out_what_was_not_read(clip):
    found = counterfactual_probe(clip, world.counterfactuals(60))
    left = found.table(["size"], unread="leave out")
    assert left["pairs"].sum() == 60 - found.unread.sum()
    assert not left["unread"].any()
    large = (found.size == "large") & ~found.unread
    row = left.set_index("size").loc["large"]
    assert row["accuracy"] == pytest.approx(100 * found.accuracy(large).value)
    assert row["pairs"] == large.sum()
    with pytest.raises(LabError, match="Did you mean half"):
        found.table(unread="halve")


def test_the_scores_of_a_pair_are_the_cosines_of_its_captions(clip):
    asked = world.counterfactuals(8)
    scores = pair_scores(clip, asked.images, asked.true, asked.false)
    images_ND = torch.nn.functional.normalize(encode_images(clip, asked.images), dim=1)
    texts_ND = torch.nn.functional.normalize(encode_texts(clip, asked.true).features_ND, dim=1)
    expected = (images_ND * texts_ND).sum(1).numpy()
    np.testing.assert_allclose(scores.true, expected, atol=1e-6)
    with pytest.raises(LabError, match="8 pictures, 8 true and 7 false"):
        pair_scores(clip, asked.images, asked.true, asked.false[:7])


def test_a_model_that_holds_248_reads_every_pair(clip):
    asked = world.counterfactuals(30)
    found = counterfactual_probe(stretch(clip, keep=20, ratio=4), asked)
    assert not found.unread.any()


def test_a_reader_of_the_first_word_alone_gains_nothing_from_more(clip):
    """With zeroed value projections nothing but the end token's own state reaches the feature."""
    deaf = stretch(clip, keep=20, ratio=4)
    with torch.no_grad():
        for block in deaf.model.transformer.resblocks:
            block.attn.out_proj.weight.zero_()
            block.attn.out_proj.bias.zero_()
        deaf.model.positional_embedding.zero_()
    pairs = world.pairs(40)
    curve = truncation_curve(deaf, pairs, cuts=[3, 20, 80, 160])
    table = curve.table()
    # All texts are one: ties leave no picture its own, and one of 40 texts its picture.
    assert table["R@1"].to_numpy() == pytest.approx(100 * (0 + 1 / 40) / 2)


def test_randomising_positions_keeps_the_first_ones_and_the_original(clip):
    before = clip.model.positional_embedding.detach().clone()
    changed = randomise_positions(clip, keep=20, seed=1)
    after = changed.model.positional_embedding
    assert torch.equal(clip.model.positional_embedding, before)
    assert torch.equal(after[:20], before[:20])
    assert not torch.equal(after[20:], before[20:])
    again = randomise_positions(clip, keep=20, seed=1).model.positional_embedding
    assert torch.equal(after, again)


def test_controls_count_what_they_cannot_change(clip):
    pairs = world.pairs(6)
    object.__setattr__(pairs, "long", [*pairs.long[:5], pairs.short[5]])
    curve = truncation_curve(clip, pairs, cuts=[5, 10, 20], controls=("as written", "summary last"))
    assert curve.unchanged == {"summary last": 1}
    assert curve.truncated["as written"] == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cuts": [0]}, "from 1 to 75"),
        ({"cuts": [76]}, "from 1 to 75"),
        ({"controls": ["as writen"]}, "as written"),
        ({"keep": 77}, "keep from 0 to 76"),
    ],
)
def test_bad_input(clip, options, said):
    with pytest.raises(LabError, match=said):
        truncation_curve(clip, world.pairs(4), **options)


def test_captions_of_one_sentence_have_no_details(clip):
    pairs = world.pairs(4)
    object.__setattr__(pairs, "long", pairs.short)
    with pytest.raises(LabError, match=r"one\s+sentence"):
        truncation_curve(clip, pairs, cuts=[5], controls=["details only"])
