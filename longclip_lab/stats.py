"""A number with its interval: by the bootstrap, and of proportions by Wilson and Newcombe.

Shapes: Q queries, G groups of queries that are drawn together, R bootstrap rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from longclip_lab.errors import MANY, SEED, LabError, NotFiniteError
from longclip_lab.files import checked_fields

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A score, its 95% interval and the number of queries behind it.

    A bootstrap cannot see what never happened: at 0 and at 1 its interval has no width.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-able; a mean over nothing and a bound that was not computed are None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        told = {name: None if math.isnan(number) else number for name, number in numbers.items()}
        return told | {"n": self.n}

    @classmethod
    def from_dict(cls, values: dict[str, float | int | None]) -> Interval:
        """The inverse of `to_dict`. Raises LabError for anything else."""
        if not isinstance(values, dict) or not {"value", "low", "high", "n"} <= values.keys():
            raise LabError(f"A score should have value, low, high and n, got {values!r:.60}.")
        numbers = (values[name] for name in ("value", "low", "high"))
        filled = (math.nan if number is None else number for number in numbers)
        return checked_fields(cls(*filled, values["n"]), "A score")


def bootstrap_mean(
    values_Q: np.ndarray,
    groups_Q: np.ndarray | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of `values_Q` with its percentile bootstrap interval (Efron and Tibshirani, ch. 13).

    Queries with the same entry in `groups_Q` are drawn together: the captions of one picture
    are no independent queries. With `rounds` 0 the bounds are NaN, and without any value all is.
    Raises LabError for values that are not finite and for fewer than 0 rounds.

    >>> bootstrap_mean(np.array([1.0, 1.0, 0.0, 1.0]), seed=0)
    Interval(value=0.75, low=0.25, high=1.0, n=4)
    """
    values_Q = np.asarray(values_Q)
    bad = len(values_Q) - int(np.isfinite(values_Q).sum())
    if bad:
        raise NotFiniteError(
            f"A mean needs finite numbers; {bad} of {len(values_Q)} are not. Leave out what could "
            "not be measured, and say how many."
        )
    MANY.check("The number of bootstrap rounds", rounds)
    SEED.check("The seed of a bootstrap", seed)
    if not len(values_Q):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values_Q))
    if rounds == 0:
        return Interval(mean, math.nan, math.nan, len(values_Q))
    groups_Q = np.arange(len(values_Q)) if groups_Q is None else groups_Q
    _, group_of_Q = np.unique(groups_Q, return_inverse=True)
    sums_and_sizes_G2 = np.stack(
        [np.bincount(group_of_Q, weights=values_Q), np.bincount(group_of_Q)], axis=1
    )
    # Drawing G groups with replacement is a multinomial draw over the few kinds of group that
    # differ in sum or size: the same distribution, without a [rounds, G] array.
    kinds, count = np.unique(sums_and_sizes_G2, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count.sum(), count / count.sum(), size=rounds) @ kinds
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(values_Q))


def wilson(wins: float, n: int, z: float = 1.959964) -> Interval:
    """Wilson's 95% interval for a proportion (Wilson 1927); `wins` may hold halves.

    >>> wilson(50, 100)
    Interval(value=0.5, low=0.40383..., high=0.59616..., n=100)
    """
    share = wins / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(float(share), float(centre - half), float(centre + half), n)


def newcombe(one: Interval, other: Interval) -> Interval:
    """The difference of two independent proportions, `one` minus `other`, with a 95% interval.

    Newcombe 1998, method 10; both are Wilson's intervals. The example is his first.

    >>> newcombe(wilson(56, 70), wilson(48, 80))
    Interval(value=0.2..., low=0.0524..., high=0.3338..., n=70)
    """
    gap = one.value - other.value
    down = np.hypot(one.value - one.low, other.high - other.value)
    up = np.hypot(one.high - one.value, other.value - other.low)
    return Interval(float(gap), float(gap - down), float(gap + up), min(one.n, other.n))
