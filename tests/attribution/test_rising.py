"""The curve of the similarity as sentences are added."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab.attribution import contributions, rising_curve
from longclip_lab.errors import LabError


def test_curves_are_those_of_each_pair(trained, drawn):
    found = rising_curve(trained, drawn.images, drawn.long)
    alone = [
        contributions(trained, image, text, permutations=4)
        for image, text in zip(drawn.images[:3], drawn.long[:3], strict=True)
    ]
    for curve, one in zip(found.curves, alone, strict=False):
        np.testing.assert_allclose(curve, one.curve, atol=1e-5)
    steps = np.concatenate([np.diff(curve[1:]) > 0 for curve in found.curves])
    assert found.steps.value == pytest.approx(steps.mean())
    assert found.steps.low < found.steps.value < found.steps.high
    assert len(found) == 12
    assert found.unread > 12


def test_gains_compare_a_pair_with_itself(trained, drawn):
    found = rising_curve(trained, drawn.images, drawn.long)
    assert found.gains[0].value == 0
    third = [curve[3] - curve[1] for curve in found.curves]
    assert found.gains[2].value == pytest.approx(np.mean(third))
    assert found.gains[2].n == 12
    longest = max(map(len, found.curves))
    assert found.gains[-1].n == sum(len(curve) == longest for curve in found.curves)
    assert list(found.table()["units"]) == list(range(1, longest))


def test_a_pair_that_always_rises_and_one_that_does_not(trained, drawn, monkeypatch):
    values = iter([[0.0, 0.3, 0.4, 0.5], [0.0, 0.5, 0.4, 0.6]])
    monkeypatch.setattr(
        "longclip_lab.attribution.contribution.similarities",
        lambda pairs, units, wanted: [
            dict(zip(asked, next(values), strict=True)) for asked in wanted
        ],
    )
    text = "A red boat. A blue house. A white tree."
    found = rising_curve(trained, drawn.images[:2], text)
    assert found.steps.value == 0.75
    assert found.always.value == 0.5


def test_one_sentence_is_no_curve(trained, drawn):
    with pytest.raises(LabError, match="at least two sentences"):
        rising_curve(trained, drawn.images[:1], drawn.short[:1])
