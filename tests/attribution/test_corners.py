"""What corners attend to: the mask is in the weights, and shares add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longclip_lab import attribution, world
from longclip_lab.errors import LabError
from longclip_lab.models import add_corner_tokens, build_lotlip, corner_attention_mask, load


@pytest.fixture(scope="module")
def bert():
    return build_lotlip("tiny-tower", "world", 2, seed=0)


def test_the_weights_stand_in_the_papers_order_and_are_0_where_the_mask_is(bert):
    found = attribution.corner_attention(bert, "a red boat. it is upright.")
    assert found.labels[:4] == ("[CLS]", "[Cor 1]", "[Cor 2]", "a")
    assert found.labels[-1] == "[SEP]"
    allowed = corner_attention_mask(torch.ones(1, len(found.labels)), 2)[0].numpy()
    assert ((found.weights > 0) == allowed).all()
    assert np.allclose(found.weights.sum(-1), 1, atol=1e-5)


def test_words_attend_as_they_do_without_corners(bert):
    text = "a red boat"
    found = attribution.corner_attention(bert, text)
    plain = attribution.attention(bert, text)
    rest = [i for i, name in enumerate(found.labels) if not name.startswith("[Cor")]
    assert np.allclose(found.weights[:, :, rest][..., rest], plain.weights, atol=1e-6)


def test_in_clips_tower_the_corners_stand_before_the_end():
    clip = add_corner_tokens(load("tiny"), 2)
    found = attribution.corner_attention(clip, "a red boat")
    assert found.labels == ("[start]", "a", "red", "boat", "[Cor 1]", "[Cor 2]", "[end]")
    assert found.pooled == 6
    assert (found.weights[:, :, 6, 4:6] == 0).all()
    assert (np.triu(found.weights, k=1) == 0).all()


def test_registers_have_their_own_name():
    clip = build_lotlip("tiny-tower", "world", 1, kind="register")
    assert attribution.corner_attention(clip, "a boat").labels[1] == "[Reg 1]"


def test_shares_are_of_the_words_alone_and_overlap_is_1_with_itself(bert):
    captions = world.pairs(3, seed=world.PROBE_SEED).long_captions
    looks = attribution.corner_looks(bert, captions, layer=0)
    assert looks.labels == ("[CLS]", "[Cor 1]", "[Cor 2]")
    assert np.allclose(looks.shares.sum(axis=1), 1)
    assert looks.even.sum() == pytest.approx(1)
    assert np.allclose(np.diag(looks.overlap), 1)
    assert (looks.overlap <= 1 + 1e-9).all()


def test_a_group_has_the_weight_of_its_words(bert):
    (caption,) = world.pairs(1, seed=world.PROBE_SEED).long_captions
    looks = attribution.corner_looks(bert, [caption])
    found = attribution.corner_attention(bert, caption.text)
    words = [i for i, name in enumerate(found.labels) if not name.startswith("[")]
    kinds = [i for i in words if found.labels[i] in world.KINDS]
    told = {fact.span for fact in caption.facts if fact.attribute == "kind"}
    assert len(told) <= len(kinds)
    row_HT = found.weights[-1][:, 1, words] / found.weights[-1][:, 1, words].sum(1, keepdims=True)
    of_kinds = row_HT[:, [words.index(i) for i in kinds]].sum(axis=1).mean()
    assert looks.shares[1, looks.groups.index("kind")] <= of_kinds + 1e-9


def test_models_without_corners_and_no_captions_are_refused(bert):
    with pytest.raises(LabError, match="has no corner tokens"):
        attribution.corner_attention(load("tiny"), "a boat")
    with pytest.raises(LabError, match="no caption"):
        attribution.corner_looks(bert, [])
