"""Paired differences, and from a difference to a verdict.

All numbers are points (a hundredth of a share). A claim that A is higher than B

- reproduces, if the whole 95% interval of the difference is above 0;
- does not, if the interval is below 0, or if it holds 0 and excludes a difference as large as the
  paper's: had it been there, it would have been seen;
- is not testable at this scale, if the interval holds both 0 and the paper's difference, if both
  arms are at the bottom (below twice chance, or below 5%) or the top of the scale, or if there is
  one seed only.

Where the paper prints no number for the difference, 1 point stands in its place.

Hits are matrices [S, N]: S training seeds, N test pictures, from 0 to 1 each. Both seeds and
pictures are samples: another seed and other pictures would give another difference. The intervals
here count both. Arms of one seed start from the same weights and see the same batches.

C points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval

# --- From a difference and its interval to a verdict and its reason ---

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


# --- Differences between arms that share their seeds and their test pictures ---

Z = 1.959963984540054
"""Half the width of a 95% interval of a normal distribution with deviation 1."""


def score(hits_SN: np.ndarray) -> Interval:
    """The mean of hits with its 95% interval over seeds and pictures; `n` is the seeds.

    Two sources of error are added: seeds with Student's t, pictures with the normal distribution.
    Each contains the part that seeds and pictures make together, so the interval is a little too
    wide rather than too narrow. With one seed the bounds are NaN: nothing is known of another.

    >>> hits = np.array([[1.0, 0, 1, 1], [1, 0, 1, 0], [1, 0, 1, 1]])
    >>> score(hits).value, score(hits[:1]).low
    (0.6666666666666666, nan)
    """
    hits_SN = _matrix(hits_SN)
    return _interval(float(hits_SN.mean()), hits_SN.mean(axis=1), [hits_SN.mean(axis=0)])


def difference(one_SN: np.ndarray, other_SN: np.ndarray) -> Interval:
    """How far `one` is above `other`, paired by seed and picture; a share from -1 to 1.

    Raises LabError unless both have the same seeds and pictures.

    >>> one, other = np.ones((2, 3)), np.zeros((2, 3))
    >>> difference(one, other)
    Interval(value=1.0, low=1.0, high=1.0, n=2)
    """
    one_SN, other_SN = _matrix(one_SN), _matrix(other_SN)
    if one_SN.shape != other_SN.shape:
        raise LabError(
            f"Expected the same seeds and pictures, got {list(one_SN.shape)} and "
            f"{list(other_SN.shape)}."
        )
    return score(one_SN - other_SN)


def above_curve(
    arm: Mapping[str, np.ndarray], curve: Sequence[Mapping[str, np.ndarray]], x: str, y: str
) -> Interval:
    """How far an arm lies above the line through the arms of a sweep, in the plane of two scores.

    `arm` and each point of `curve` (in the order of what is swept) map column names to hits. For
    each seed the line is read at the arm's own `x`; where the arm is outside the sweep, at its
    nearer end. Over pictures the error is that of the line's linear form at this place.

    Raises LabError for a sweep of fewer than two points.
    """
    if len(curve) < 2:
        raise LabError(f"A sweep needs at least two arms, got {len(curve)}.")
    seeds = len(arm[x])
    gaps_S = np.empty(seeds)
    across, up = [], []
    for seed in range(seeds):
        xs_C = np.array([point[x][seed].mean() for point in curve])
        ys_C = np.array([point[y][seed].mean() for point in curve])
        weights_C, slope = _place(xs_C, ys_C, arm[x][seed].mean())
        gaps_S[seed] = arm[y][seed].mean() - weights_C @ ys_C
        up.append(arm[y][seed] - sum(w * p[y][seed] for w, p in zip(weights_C, curve, strict=True)))
        across.append(
            slope
            * (arm[x][seed] - sum(w * p[x][seed] for w, p in zip(weights_C, curve, strict=True)))
        )
    by_picture = [np.mean(up, axis=0), np.mean(across, axis=0)]
    return _interval(float(gaps_S.mean()), gaps_S, by_picture)


def _place(xs_C: np.ndarray, ys_C: np.ndarray, at: float) -> tuple[np.ndarray, float]:
    """Weights of the curve's points at `at`, the highest `y` where several pieces pass, and the
    slope there."""
    best: tuple[float, np.ndarray, float] | None = None
    for left in range(len(xs_C) - 1):
        (x0, x1), (y0, y1) = xs_C[left : left + 2], ys_C[left : left + 2]
        if not min(x0, x1) <= at <= max(x0, x1):
            continue
        share = 0.0 if x0 == x1 else (at - x0) / (x1 - x0)
        weights_C = np.zeros(len(xs_C))
        weights_C[left], weights_C[left + 1] = 1 - share, share
        found = (float(weights_C @ ys_C), weights_C, 0.0 if x0 == x1 else (y1 - y0) / (x1 - x0))
        best = found if best is None or found[0] > best[0] else best
    if best is not None:
        return best[1], best[2]
    weights_C = np.zeros(len(xs_C))
    weights_C[xs_C.argmin() if at < xs_C.min() else xs_C.argmax()] = 1
    return weights_C, 0.0


def _interval(value: float, by_seed_S: np.ndarray, by_picture: Sequence[np.ndarray]) -> Interval:
    """An interval from the means of each seed and, for each set of pictures, of each picture."""
    seeds = len(by_seed_S)
    if seeds < 2:
        return Interval(value, math.nan, math.nan, seeds)
    from scipy.stats import t  # comes with scikit-learn

    of_seeds = t.ppf(0.975, seeds - 1) * by_seed_S.std(ddof=1) / math.sqrt(seeds)
    variance = sum(means_N.var(ddof=1) / len(means_N) for means_N in by_picture)
    half = math.hypot(of_seeds, Z * math.sqrt(variance))
    return Interval(value, value - half, value + half, seeds)


def _matrix(hits_SN: np.ndarray) -> np.ndarray:
    hits_SN = np.asarray(hits_SN, dtype=float)
    if hits_SN.ndim != 2 or hits_SN.shape[0] < 1 or hits_SN.shape[1] < 2:
        raise LabError(
            f"Expected hits of at least one seed and two pictures, got {list(hits_SN.shape)}."
        )
    return hits_SN
