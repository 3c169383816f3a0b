"""Verdicts on made-up differences whose right answer is known."""

from __future__ import annotations

import math

import pytest

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.reproduction.verdicts import judge, overall

YES, NO, OPEN = "reproduces", "does not", "not testable at this scale"


@pytest.mark.parametrize(
    ("relation", "interval", "published", "verdict"),
    [
        ("higher", (1, 3), 2.0, YES),
        ("higher", (-3, -1), 2.0, NO),  # the opposite
        ("higher", (-1, 1), 2.0, NO),  # 2 points would have been seen
        ("higher", (-1, 3), 2.0, OPEN),  # 2 points may be there
        ("higher", (-0.5, 0.9), None, NO),  # no number: 1 point counts
        ("higher", (-0.5, 1.1), None, OPEN),
        ("lower", (-3, -1), -2.0, YES),
        ("lower", (-1, 1), -2.0, NO),
        ("lower", (-3, 1), -2.0, OPEN),
        ("not higher", (-1, 0.5), None, YES),
        ("not higher", (-5, -2), None, YES),  # worse is not higher
        ("not higher", (0.5, 3), None, NO),
        ("not higher", (-1, 3), None, OPEN),
        ("not lower", (0, 0), None, YES),
        ("not lower", (-3, -0.5), None, NO),
        ("not lower", (-3, 1), None, OPEN),
    ],
)
def test_verdicts(relation, interval, published, verdict):
    low, high = interval
    found = judge(relation, Interval((low + high) / 2, low, high, 5), published)
    assert found.verdict == verdict
    assert f"{low:+.1f} to {high:+.1f}" in found.reason


def test_one_seed_decides_nothing():
    found = judge("higher", Interval(9, math.nan, math.nan, 1))
    assert (found.verdict, "one seed" in found.reason) == (OPEN, True)


@pytest.mark.parametrize(
    ("scores", "reason"), [((0.15, 0.12), "guessing"), ((99.1, 98.9), "no room")]
)
def test_no_verdict_at_the_bottom_and_at_the_top(scores, reason):
    found = judge("higher", Interval(0, -0.1, 0.1, 5), 2.0, scores, chance=0.1)
    assert found.verdict == OPEN
    assert reason in found.reason


def test_a_difference_that_is_seen_at_the_top_counts():
    assert judge("higher", Interval(1, 0.5, 1.5, 5), 2.0, (99.5, 98.5)).verdict == YES


def test_unknown_relations_are_refused():
    with pytest.raises(LabError, match="higher, lower"):
        judge("better", Interval(0, 0, 0, 3))


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([YES, YES], YES),
        ([NO, OPEN], NO),
        ([OPEN, OPEN], OPEN),
        ([YES, OPEN], "in part"),
        ([YES, NO], "in part"),
    ],
)
def test_one_verdict_for_several_claims(verdicts, whole):
    assert overall(verdicts) == whole


def test_arms_that_have_hardly_learned_anything_decide_nothing():
    effect = Interval(0.1, -0.5, 0.7, 3)
    low = judge("higher", effect, published=43.9, scores=(2.9, 2.3), chance=0.1)
    assert low.verdict == OPEN
    assert "hardly learned" in low.reason
    enough = judge("higher", effect, published=43.9, scores=(6.0, 5.9), chance=0.1)
    assert enough.verdict == NO
