"""Differences with intervals over seeds and pictures, against numbers known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from longclip_lab.errors import LabError
from longclip_lab.reproduction.verdicts import above_curve, difference, score


def flat(*means: float, pictures: int = 4) -> np.ndarray:
    """Hits that are the same for all pictures: only seeds vary."""
    return np.repeat(np.array(means)[:, None], pictures, axis=1)


def test_seeds_alone_give_students_interval():
    means = [0.50, 0.53, 0.47, 0.55, 0.50]
    found = score(flat(*means))
    low, high = stats.t.interval(0.95, len(means) - 1, loc=np.mean(means), scale=stats.sem(means))
    assert (found.value, found.low, found.high) == pytest.approx((0.51, low, high))
    assert found.n == 5


def test_pictures_alone_give_the_normal_interval():
    by_picture = np.array([1.0, 0, 1, 1, 0, 1, 1, 0])
    found = score(np.stack([by_picture] * 3))
    half = stats.norm.ppf(0.975) * stats.sem(by_picture)
    assert (found.low, found.high) == pytest.approx((0.625 - half, 0.625 + half))


def test_both_sources_are_added():
    rng = np.random.default_rng(0)
    hits = rng.random((4, 50))
    found = score(hits)
    seeds = stats.t.ppf(0.975, 3) * stats.sem(hits.mean(axis=1))
    pictures = stats.norm.ppf(0.975) * stats.sem(hits.mean(axis=0))
    assert found.high - found.value == pytest.approx(math.hypot(seeds, pictures))


def test_what_arms_share_does_not_widen_their_difference():
    rng = np.random.default_rng(1)
    hard = rng.random((5, 200))
    found = difference(hard + 0.02, hard)
    assert found.value == pytest.approx(0.02)
    assert found.high - found.low < 1e-6


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        seeds, pictures = rng.normal(0, 0.02, (5, 1)), rng.normal(0, 0.2, (1, 100))
        found = score(0.5 + seeds + pictures + rng.normal(0, 0.2, (5, 100)))
        covered += found.low <= 0.5 <= found.high
    assert covered / 300 >= 0.95


def test_one_seed_has_no_interval():
    assert math.isnan(score(np.ones((1, 5))).low)


def test_arms_of_other_pictures_are_not_paired():
    with pytest.raises(LabError, match="same seeds and pictures"):
        difference(np.ones((2, 5)), np.ones((2, 6)))


def point(x: float, y: float) -> dict[str, np.ndarray]:
    return {"short": flat(x, x + 0.01), "long": flat(y, y)}


CURVE = [point(0.2, 0.8), point(0.4, 0.7), point(0.8, 0.1)]


@pytest.mark.parametrize(
    ("x", "y", "above"),
    [
        (0.3, 0.75, 0.0),  # on the first piece
        (0.6, 0.5, 0.1),  # the second piece is at 0.4 there
        (0.9, 0.1, 0.0),  # beyond the sweep: its nearer end
        (0.1, 0.9, 0.1),
    ],
)
def test_height_above_a_sweep(x, y, above):
    found = above_curve(point(x, y), CURVE, "short", "long")
    assert found.value == pytest.approx(above)


def test_a_model_of_the_sweep_lies_on_it():
    for own in CURVE:
        found = above_curve(own, CURVE, "short", "long")
        assert found.value == pytest.approx(0)
        assert found.low == pytest.approx(0)


def test_a_sweep_of_one_is_no_sweep():
    with pytest.raises(LabError, match="at least two"):
        above_curve(CURVE[0], CURVE[:1], "short", "long")
