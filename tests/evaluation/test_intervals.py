"""The bootstrap against a literal one, and against the binomial it must agree with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.evaluation import Interval, bootstrap_mean


def test_matches_the_binomial_standard_error():
    values = np.repeat([1.0, 0.0], [760, 240])
    interval = bootstrap_mean(values, rounds=20_000)
    error = math.sqrt(0.76 * 0.24 / 1000)
    assert interval.value == 0.76
    assert interval.low == pytest.approx(0.76 - 1.96 * error, abs=0.002)
    assert interval.high == pytest.approx(0.76 + 1.96 * error, abs=0.002)
    assert interval.n == 1000


def test_groups_are_drawn_together_like_a_literal_bootstrap():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 6, 60))
    values = (rng.random(len(groups)) < np.repeat(rng.random(60), np.bincount(groups))).astype(
        float
    )
    drawn = rng.integers(60, size=(20_000, 60))
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    literal = sums[drawn].sum(1) / sizes[drawn].sum(1)
    interval = bootstrap_mean(values, groups, rounds=20_000)
    assert (interval.low, interval.high) == pytest.approx(
        tuple(np.quantile(literal, [0.025, 0.975])), abs=0.01
    )
    alone = bootstrap_mean(values, rounds=20_000)
    assert interval.high - interval.low > 1.1 * (alone.high - alone.low)


def test_interval_round_trips():
    for interval in (Interval(0.5, 0.4, 0.6, 10), bootstrap_mean(np.ones(3), rounds=5)):
        assert Interval.from_dict(interval.to_dict()) == interval
    bare = Interval.from_dict(bootstrap_mean(np.ones(3), rounds=0).to_dict())
    assert math.isnan(bare.low)
    assert str(Interval(0.5, 0.4, 0.6, 10)) == "0.500 [0.400, 0.600]"


def test_a_mean_over_nothing_is_no_number_and_a_mean_of_nan_is_refused():
    nothing = bootstrap_mean(np.array([]))
    assert nothing.n == 0
    assert nothing.to_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert all(map(math.isnan, (nothing.value, nothing.low, nothing.high)))
    assert math.isnan(Interval.from_dict(nothing.to_dict()).value)
    with pytest.raises(NotFiniteError, match="1 of 3 are not"):
        bootstrap_mean(np.array([1.0, np.nan, 0.0]))
    for options in ({"rounds": -1}, {"rounds": 2.5}, {"seed": -1}):
        with pytest.raises(LabError, match="whole number from 0"):
            bootstrap_mean(np.ones(3), **options)
