"""What lessons ask of the probes: gains between cuts, some of the answers."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.models import load
from longclip_lab.probing import TruncationCurve, counterfactual_probe


@pytest.fixture(scope="module")
def clip():
    return load("tiny")


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
