"""Does the similarity rise as sentences are added? It should; often it does not.

HiMo-CLIP (Wu et al., AAAI 2026) calls it semantic monotonicity: a fuller true description should
fit its picture better. A text tower that was never asked for it may do otherwise.

N pairs, n units of a text, k units so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longclip_lab.attribution.inputs import Picture, as_pairs
from longclip_lab.attribution.subtexts import similarities, units_of
from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.evaluation.intervals import bootstrap_mean
from longclip_lab.models import Clip
from longclip_lab.models.encoding import Images
from longclip_lab.plotting import Plottable


@dataclass(frozen=True)
class RisingCurve(Plottable):
    """Similarity of pictures with the first k units of their texts, for many pairs.

    `curves` [N] holds for each pair the similarity after 0, 1, 2 ... units, the empty text first.
    `steps` is the share of the steps from the first unit on that raise it, `always` the share of
    the pairs in which all do; intervals are bootstrapped over pairs, and chance knows no direction:
    one half of the steps. `gains` [k] is the mean similarity after k units (from 1) less that after
    the first, over the pairs that have k units (`n` of each interval), so that no two points are
    compared over different texts. `unread` counts the units behind the context of all texts.
    """

    model: str
    units: str
    curves: tuple[np.ndarray, ...]
    steps: Interval
    always: Interval
    gains: tuple[Interval, ...]
    unread: int

    def __len__(self) -> int:
        return len(self.curves)

    def table(self):
        """A DataFrame, a row for each number of units: gain over the first, its interval, pairs."""
        import pandas as pd

        rows = [(k, g.value, g.low, g.high, g.n) for k, g in enumerate(self.gains, start=1)]
        return pd.DataFrame(rows, columns=["units", "gain", "low", "high", "pairs"])


def rising_curve(
    clip: Clip,
    images: Picture | Images,
    texts: str | Sequence[str],
    units: str = "sentences",
    rounds: int = 1000,
    seed: int = 0,
) -> RisingCurve:
    """The curve of the similarity as sentences are added in order, over many pairs.

    Pairs of which one unit only is read count in no step. Units behind the context are left out,
    as they would change nothing, and are counted.

    Raises LabError if no text has two units that are read, and as `units_of` and `as_pairs` do.
    """
    pairs = as_pairs(clip, images, texts)
    read = [units_of(clip, text, units) for text in pairs.texts]
    starts = [[frozenset(range(k)) for k in range(len(one) + 1)] for one in read]
    values = similarities(pairs, read, starts)
    curves = [
        np.array([value[s] for s in asked]) for asked, value in zip(starts, values, strict=True)
    ]
    rises = [np.diff(curve[1:]) > 0 for curve in curves]
    if not any(len(one) for one in rises):
        raise LabError(f"expected texts with at least two {units} that '{clip.name}' reads.")
    pair_of_step = np.repeat(np.arange(len(rises)), [len(one) for one in rises])
    gains = []
    for k in range(1, max(map(len, curves))):
        gained = np.array([curve[k] - curve[1] for curve in curves if len(curve) > k])
        gains.append(bootstrap_mean(gained, rounds=rounds, seed=seed))
    always = np.array([one.all() for one in rises if len(one)], dtype=float)
    return RisingCurve(
        model=clip.name,
        units=units,
        curves=tuple(curves),
        steps=bootstrap_mean(np.concatenate(rises).astype(float), pair_of_step, rounds, seed),
        always=bootstrap_mean(always, rounds=rounds, seed=seed),
        gains=tuple(gains),
        unread=sum(one.unread for one in read),
    )
