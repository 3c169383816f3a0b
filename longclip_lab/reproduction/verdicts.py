"""From a difference and its interval to a verdict and its reason; no word of it written by hand.

All numbers are points (a hundredth of a share). A claim that A is higher than B

- reproduces, if the whole 95% interval of the difference is above 0;
- does not, if the interval is below 0, or if it holds 0 and excludes a difference as large as the
  paper's: had it been there, it would have been seen;
- is not testable at this scale, if the interval holds both 0 and the paper's difference, if both
  arms are at the bottom (below twice chance, or below 5%) or the top of the scale, or if there is
  one seed only.

Where the paper prints no number for the difference, 1 point stands in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval

Relation = Literal["higher", "lower", "not higher", "not lower"]
Verdict = Literal["reproduces", "does not", "not testable at this scale"]
Overall = Literal["reproduces", "does not", "in part", "not testable at this scale"]
RELATIONS: tuple[Relation, ...] = ("higher", "lower", "not higher", "not lower")
REPRODUCES, DOES_NOT, NOT_TESTABLE = "reproduces", "does not", "not testable at this scale"
IN_PART = "in part"

RELEVANT = 1.0
"""Points below which a difference counts as none where a paper gives no number."""
BOTTOM, TOP = 2.0, 98.0
"""Scores at which both arms leave no room: below twice chance, or above 98%."""
LEARNED = 5.0
"""Percent that one of two arms must reach: below, too little was learned for a method to show."""


@dataclass(frozen=True)
class Judged:
    """A verdict and what it rests on."""

    verdict: Verdict
    reason: str


def judge(
    relation: Relation,
    effect: Interval,
    published: float | None = None,
    scores: tuple[float, float] | None = None,
    chance: float = 0.0,
) -> Judged:
    """The verdict on "A is `relation` than B" from A - B in points.

    `published` is the paper's difference A - B in points; `scores` are both arms' own scores and
    `chance` what guessing gets, in percent. Raises LabError for an unknown relation.

    >>> judge("higher", Interval(2.0, 0.5, 3.5, 5)).verdict
    'reproduces'
    >>> print(judge("higher", Interval(0.2, -0.6, 1.0, 5), published=1.97).reason)
    +0.2 (-0.6 to +1.0) points: 0 is inside, and the paper's +2.0 would have been seen
    """
    if relation not in RELATIONS:
        raise LabError(f"expected one of {', '.join(RELATIONS)}, got {relation!r}.")
    told = points(effect)
    if effect.n < 2 or not all(map(math.isfinite, (effect.value, effect.low, effect.high))):
        return Judged(NOT_TESTABLE, f"{told}: one seed says nothing of another")
    if relation.startswith("not"):
        return _absence(relation, effect, published, told)
    sign = 1.0 if relation == "higher" else -1.0
    low, high = sorted((sign * effect.low, sign * effect.high))
    if low > 0:
        return Judged(REPRODUCES, f"{told}: the interval is {_side(sign)} 0")
    if scores is not None and (stuck := _stuck(scores, chance)):
        return Judged(NOT_TESTABLE, f"{told}: {stuck}")
    if high < 0:
        return Judged(DOES_NOT, f"{told}: the opposite, the interval is {_side(-sign)} 0")
    wanted = RELEVANT if published is None else max(sign * published, 0.0)
    name = f"{sign * RELEVANT:+.0f} point" if published is None else f"the paper's {published:+.1f}"
    if high < wanted:
        return Judged(DOES_NOT, f"{told}: 0 is inside, and {name} would have been seen")
    return Judged(NOT_TESTABLE, f"{told}: 0 and {name} are both inside")


def _absence(relation: Relation, effect: Interval, published: float | None, told: str) -> Judged:
    sign = 1.0 if relation == "not higher" else -1.0
    low, high = sorted((sign * effect.low, sign * effect.high))
    room = max(RELEVANT, 0.0 if published is None else sign * published)
    if high < room:
        return Judged(REPRODUCES, f"{told}: {sign * room:+.1f} would have been seen")
    if low > 0:
        return Judged(DOES_NOT, f"{told}: the interval is {_side(sign)} 0")
    return Judged(NOT_TESTABLE, f"{told}: 0 and {sign * room:+.1f} are both inside")


def _stuck(scores: tuple[float, float], chance: float) -> str:
    both = f"{scores[0]:.1f}% and {scores[1]:.1f}%"
    if max(scores) <= BOTTOM * chance:
        return f"both arms hardly differ from guessing ({both}, chance {chance:.1f}%)"
    if max(scores) < LEARNED:
        return f"both arms have hardly learned anything ({both})"
    if min(scores) >= TOP:
        return f"both arms leave no room above them ({both})"
    return ""


def _side(sign: float) -> str:
    return "above" if sign > 0 else "below"


def points(effect: Interval) -> str:
    """
    >>> points(Interval(1.25, -0.5, 3.0, 5))
    '+1.2 (-0.5 to +3.0) points'
    """
    if math.isnan(effect.low):
        return f"{effect.value:+.1f} points"
    return f"{effect.value:+.1f} ({effect.low:+.1f} to {effect.high:+.1f}) points"


def overall(verdicts: Iterable[Verdict]) -> Overall:
    """One verdict for an experiment from those of the paper's claims in it.

    >>> overall(["reproduces", "does not"]), overall(["does not", "not testable at this scale"])
    ('in part', 'does not')
    """
    verdicts = list(verdicts)
    for same in (NOT_TESTABLE, REPRODUCES):
        if all(verdict == same for verdict in verdicts):
            return same
    if REPRODUCES in verdicts:
        return IN_PART
    return DOES_NOT
