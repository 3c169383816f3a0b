"""Numbers as sentences: what titles and reports say is read off the intervals here.

A difference is called one only where the two 95% intervals do not overlap. That is stricter than a
test at 5%, and easy to see in a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from longclip_lab.evaluation import Interval

Difference = Literal["higher", "lower", "no difference seen"]

CHANCE = 0.5


def compare(one: Interval, other: Interval) -> Difference:
    """How `one` stands to `other`.

    >>> compare(Interval(0.7, 0.6, 0.8, 100), Interval(0.5, 0.4, 0.59, 100))
    'higher'
    >>> compare(Interval(0.7, 0.6, 0.8, 100), Interval(0.5, 0.4, 0.60, 100))
    'no difference seen'
    """
    if one.low > other.high:
        return "higher"
    return "lower" if one.high < other.low else "no difference seen"


def mean(one: Interval, other: Interval) -> Interval:
    """The mean of two scores of the same queries, such as both directions of retrieval.

    Its bounds are the means of the bounds: exact for scores that rise and fall together, too wide
    otherwise.
    """
    middles = ((a + b) / 2 for a, b in zip(_numbers(one), _numbers(other), strict=True))
    return Interval(*middles, min(one.n, other.n))


def _numbers(score: Interval) -> tuple[float, float, float]:
    return score.value, score.low, score.high


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 as text.

    >>> percent(0.7583), percent(0.7583, 1)
    ('76%', '75.8%')
    """
    return f"{100 * share:.{digits}f}%"


def with_interval(score: Interval) -> str:
    """A share with its 95% interval, in percent.

    >>> with_interval(Interval(0.758, 0.731, 0.784, 1000))
    '75.8% (73.1–78.4)'
    """
    return f"{percent(score.value, 1)} ({100 * score.low:.1f}–{100 * score.high:.1f})"


def points(one: Interval, other: Interval) -> str:
    """The distance of two shares in percentage points, without its sign.

    >>> points(Interval(0.65, 0.6, 0.7, 9), Interval(0.758, 0.7, 0.8, 9))
    '10.8 points'
    """
    return f"{100 * abs(one.value - other.value):.1f} points"


def change(
    gap: Interval, more: str = "a gain", less: str = "a loss", neither: str = "no change seen"
) -> str:
    """A difference of two shares in points, in Markdown, and what its 95% interval allows to say.

    >>> change(Interval(0.031, 0.012, 0.05, 400))
    '+3.1 points (+1.2 to +5.0), **a gain**'
    >>> change(Interval(-0.01, -0.03, 0.01, 400), more="better", less="worse", neither="level")
    '-1.0 points (-3.0 to +1.0), **level**'
    """
    seen = more if gap.low > 0 else less if gap.high < 0 else neither
    value, low, high = (f"{100 * bound:+.1f}" for bound in (gap.value, gap.low, gap.high))
    return f"{value} points ({low} to {high}), **{seen}**"


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["kind", "colour", "place"])
    'kind, colour and place'
    """
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def capital(sentence: str) -> str:
    """The sentence with a capital first letter, the others as they are."""
    return sentence[:1].upper() + sentence[1:]
