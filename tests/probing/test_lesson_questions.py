"""What lessons ask of the probes: reading along, gains between cuts, some of the answers."""

from __future__ import annotations

import numpy as np
import pytest
from torch.nn import functional as F

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.models import encode_images, encode_texts, load
from longclip_lab.probing import TruncationCurve, counterfactual_probe, read_along


@pytest.fixture(scope="module")
def clip():
    return load("tiny")


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(40)


def test_ranks_and_pictures_are_those_of_the_cut_text(clip, pairs):
    words = " ".join(world.pairs(40).long[3].split()[:6])  # no punctuation: six tokens
    along = read_along(clip, pairs, index=3, cuts=[6, 20], show=4)
    images = F.normalize(encode_images(clip, pairs.images), dim=1)
    cosines = (F.normalize(encode_texts(clip, [words]).features_ND, dim=1) @ images.T)[0].numpy()
    assert list(along.found[0]) == list(np.argsort(-cosines)[:4])
    assert along.ranks[0] == (cosines > cosines[3]).sum() + 1


def test_every_token_that_the_model_reads_is_a_cut(clip, pairs):
    assert list(read_along(clip, pairs).cuts) == list(range(1, clip.context_length - 1))


def test_first_found_is_where_the_own_picture_stays_in_front(clip, pairs):
    along = read_along(clip, pairs, index=1)
    missed = along.cuts[along.ranks > 1]
    if along.first_found is not None:
        assert all(along.ranks[along.cuts >= along.first_found] == 1)
        assert not len(missed) or missed[-1] < along.first_found
    else:
        assert along.ranks[-1] > 1


@pytest.mark.parametrize("wrong", [{"index": 40}, {"show": 0}, {"cuts": [0]}, {"cuts": [400]}])
def test_what_cannot_be_read_along_is_said(clip, pairs, wrong):
    with pytest.raises(LabError, match="expected"):
        read_along(clip, pairs, **wrong)


def test_a_subset_of_answers_keeps_their_questions(clip):
    probe = counterfactual_probe(clip, world.counterfactuals(60))
    kinds = probe.subset(probe.attribute == "kind")
    assert len(kinds.margins) == 10
    assert kinds.accuracy() == probe.accuracy(probe.attribute == "kind")
    with pytest.raises(LabError, match="keeps at least one"):
        probe.subset(probe.position > 1000)


def test_the_gain_between_two_cuts_is_that_of_the_same_pictures():
    before, after = np.array([1.0, 0, 0, 0.5]), np.array([1.0, 1, 0, 0.5])
    curve = TruncationCurve("made", (5, 10), {"as written": np.stack([before, after])}, {}, {}, {})
    gain = curve.gain("as written", 5, 10)
    assert (gain.value, gain.low, gain.n) == (0.25, 0.0, 4)
    assert curve.gain("as written", 10, 5).value == -0.25
    with pytest.raises(LabError, match=r"expected cuts of the curve, \[5, 10\], got 20"):
        curve.gain("as written", 5, 20)
