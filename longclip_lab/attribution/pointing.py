"""Does a map point at what it was asked about? Its peak, its energy, and chance.

K places of one map (patches of a picture, tokens of a text), Q questions.
"""

from __future__ import annotations

import numpy as np

from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.probing import wilson

ROUNDS = 2000


def peak_inside(scores_K: np.ndarray, inside_K: np.ndarray) -> float:
    """The pointing game (Zhang et al. 2016, Section 4.1): 1 if the highest score lies inside.

    Places that share the highest score count in equal parts, so that a map of equal scores, which
    says nothing, gets exactly what a random place would.

    >>> peak_inside(np.array([0.1, 0.9, 0.9]), np.array([False, True, False]))
    0.5
    """
    return float(inside_K[scores_K == scores_K.max()].mean())


def energy_inside(scores_K: np.ndarray, share_K: np.ndarray) -> float:
    """The share of a map's positive mass that lies inside (Wang et al. 2020, Section 4.3).

    `share_K` says how much of each place is inside. A map without positive mass says nothing and
    gets what an even map would: the inside's share of all area.

    >>> energy_inside(np.array([3.0, 1.0, -5.0]), np.array([1.0, 0.0, 0.5]))
    0.75
    """
    positive_K = np.clip(scores_K, 0, None)
    mass = positive_K.sum()
    return float((positive_K * share_K).sum() / mass) if mass > 0 else float(share_K.mean())


def proportion(values_Q: np.ndarray, groups_Q: np.ndarray, seed: int = 0) -> Interval:
    """The mean of hits (0 to 1) with a 95% interval.

    Wilson's where every group (picture) has one question. Where questions share pictures they are
    no independent ones: then a bootstrap draws whole groups, and Wilson's interval for the number
    of groups stands in where all groups are equal and a bootstrap would have no width.
    """
    _, which_Q, sizes = np.unique(groups_Q, return_inverse=True, return_counts=True)
    groups, means = len(sizes), np.bincount(which_Q, values_Q) / sizes
    if groups == len(values_Q):
        return wilson(float(values_Q.sum()), groups)
    if np.ptp(means) < 1e-9:
        bounds = wilson(float(values_Q.mean()) * groups, groups)
        return Interval(bounds.value, bounds.low, bounds.high, len(values_Q))
    return bootstrap_mean(values_Q, groups_Q, ROUNDS, seed)


def paired(gains_Q: np.ndarray, groups_Q: np.ndarray, seed: int = 0) -> Interval:
    """The mean of differences within questions, with a bootstrap interval over whole groups."""
    return bootstrap_mean(gains_Q, groups_Q, ROUNDS, seed)
