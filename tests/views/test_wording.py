"""Sentences follow the intervals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views.theme import compare, listed, mean, points, with_interval

OPPOSITE = {"higher": "lower", "lower": "higher", "no difference seen": "no difference seen"}


@st.composite
def intervals(draw) -> Interval:
    low, value, high = sorted(draw(st.tuples(*[st.floats(0, 1)] * 3)))
    return Interval(value, low, high, draw(st.integers(1, 1000)))


@given(intervals(), intervals())
def test_comparing_the_other_way_round_gives_the_opposite(one, other):
    assert compare(one, other) == OPPOSITE[compare(other, one)]


@given(intervals())
def test_nothing_differs_from_itself(one):
    assert compare(one, one) == "no difference seen"


@given(intervals(), intervals())
def test_the_mean_lies_between_its_bounds(one, other):
    both = mean(one, other)
    assert both.low <= both.value + 1e-12
    assert both.value <= both.high + 1e-12
    assert both.n == min(one.n, other.n)


def test_touching_intervals_are_no_difference():
    assert compare(Interval(0.6, 0.5, 0.7, 9), Interval(0.4, 0.3, 0.5, 9)) == "no difference seen"
    assert compare(Interval(0.6, 0.51, 0.7, 9), Interval(0.4, 0.3, 0.5, 9)) == "higher"


def test_numbers_as_text():
    score = Interval(0.1234, 0.1, 0.1551, 50)
    assert with_interval(score) == "12.3% (10.0–15.5)"
    assert points(score, Interval(0.2, 0, 1, 50)) == "7.7 points"
    assert listed([]) == ""
    assert listed(["one"]) == "one"
    assert listed(["one", "two"]) == "one and two"


def test_what_is_no_number_is_not_compared():
    with pytest.raises(LabError, match="expected intervals of numbers"):
        compare(Interval(math.nan, math.nan, math.nan, 9), Interval(0.4, 0.3, 0.5, 9))
