"""Effective length: after how many tokens does reading on stop to pay?

C cuts, N pairs, R bootstrap samples.

Long-CLIP (Section 3.1) reads about 20 tokens off a truncation curve. The number depends on what one
means, so every definition is computed, each with an interval from the same paired bootstrap:

- `plateau`: the first cut whose score reaches 95% of the score with all tokens;
- `half`: the first cut that reaches half of the score with all tokens;
- `marginal gain`: the last cut up to which every step since the cut before brought a gain per
  token above `least_gain` (default 0.1 points a token);
- `last gain`: the last cut that is reached by a step whose gain is above 0 with 97.5% certainty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.models import Clip
from longclip_lab.plotting import Plottable
from longclip_lab.probing.truncation import CONTROLS, TruncationCurve, truncation_curve

PLATEAU, HALF = 0.95, 0.5


@dataclass(frozen=True)
class EffectiveLength(Plottable):
    """`lengths[variant][definition]` is an Interval in content tokens; `curve` is what it is of."""

    curve: TruncationCurve
    lengths: dict[str, dict[str, Interval]]
    least_gain: float

    def table(self):
        """A DataFrame: variant, definition, tokens, low, high."""
        import pandas as pd

        rows = [
            (variant, name, length.value, length.low, length.high)
            for variant, definitions in self.lengths.items()
            for name, length in definitions.items()
        ]
        return pd.DataFrame(rows, columns=["variant", "definition", "tokens", "low", "high"])

    def to_dict(self) -> dict:
        """JSON-able: the lengths under each definition, and the curve."""
        return {"lengths": self.table().to_dict("records"), "curve": self.curve.to_dict()}


def first_reaching(scores_RC: np.ndarray, cuts: np.ndarray, share: float) -> np.ndarray:
    """The first cut [R] whose score is at least `share` of the last cut's.

    >>> first_reaching(np.array([[10.0, 60.0, 96.0, 100.0]]), np.array([5, 10, 20, 40]), 0.95)
    array([20])
    """
    return cuts[(scores_RC >= share * scores_RC[:, -1:]).argmax(1)]


def gainful(scores_RC: np.ndarray, cuts: np.ndarray, least_gain: float) -> np.ndarray:
    """The last cut [R] before the gain per token first falls to `least_gain` or below.

    >>> gainful(np.array([[0.10, 0.60, 0.61, 0.90]]), np.array([5, 10, 20, 40]), 0.005)
    array([10])
    """
    gains = np.diff(scores_RC, axis=1) / np.diff(cuts)
    stops = np.concatenate([gains <= least_gain, np.ones((len(gains), 1), bool)], axis=1)
    return cuts[stops.argmax(1)]


def lengths_of(
    curve: TruncationCurve, variant: str, least_gain: float = 0.001
) -> dict[str, Interval]:
    """Each definition's length for one variant of a curve, with a 95% bootstrap interval."""
    cuts = np.array(curve.cuts)
    if len(cuts) < 3:
        raise LabError(f"expected a curve with at least 3 cuts, got {len(cuts)}.")
    samples_RC = curve.resampled(variant)
    mean_1C = curve.hits[variant].mean(1)[None]
    rules = {
        "plateau": lambda scores: first_reaching(scores, cuts, PLATEAU),
        "half": lambda scores: first_reaching(scores, cuts, HALF),
        "marginal gain": lambda scores: gainful(scores, cuts, least_gain),
    }
    out = {}
    for name, rule in rules.items():
        low, high = np.quantile(rule(samples_RC), [0.025, 0.975], method="nearest")
        out[name] = Interval(float(rule(mean_1C)[0]), float(low), float(high), curve.num_pairs)
    certain = np.quantile(np.diff(samples_RC, axis=1), 0.025, axis=0) > 0
    last = float(cuts[1:][certain][-1]) if certain.any() else float(cuts[0])
    out["last gain"] = Interval(last, last, last, curve.num_pairs)
    return out


def effective_length(
    clip: Clip,
    pairs,
    controls=CONTROLS,
    least_gain: float = 0.001,
    seed: int = 0,
    progress: bool = False,
) -> EffectiveLength:
    """Measure the truncation curve with its controls and read every definition off it.

    Args:
        least_gain: R@1 gain (as a share, 0 to 1) a token below which reading on does not pay.
    """
    curve = truncation_curve(clip, pairs, controls=controls, seed=seed, progress=progress)
    lengths = {variant: lengths_of(curve, variant, least_gain) for variant in curve.hits}
    return EffectiveLength(curve, lengths, least_gain)
