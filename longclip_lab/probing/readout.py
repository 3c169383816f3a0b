"""What can be read off features by a straight line: is this kind of thing in the picture?

A model may answer wrongly because its text says too little of a thing or because the picture's
feature does not hold it. A linear read-out asks the feature alone, without any text.

N pictures, D dimensions, K kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.world import KINDS, SIZES, Scene


@dataclass(frozen=True)
class Readout:
    """`auc[size]` [K]: of a picture with a thing of this kind and size and one without the kind,
    how often the read-out scores the former higher; 0.5 is guessing. NaN where there were too few.
    """

    auc: dict[str, np.ndarray]
    pictures: int
    folds: int

    def score(self, size: str) -> Interval:
        """The mean AUC over the kinds, with a 95% bootstrap interval that draws kinds."""
        found_K = self.auc[size]
        return bootstrap_mean(found_K[~np.isnan(found_K)])

    def against(self, other: Readout, size: str) -> Interval:
        """The mean difference to another read-out's AUC, kind by kind."""
        difference_K = self.auc[size] - other.auc[size]
        return bootstrap_mean(difference_K[~np.isnan(difference_K)])

    def table(self):
        """A DataFrame: size, AUC in percent, low, high, kinds."""
        import pandas as pd

        scores = {size: self.score(size) for size in self.auc}
        rows = [(z, 100 * s.value, 100 * s.low, 100 * s.high, s.n) for z, s in scores.items()]
        return pd.DataFrame(rows, columns=["size", "AUC", "low", "high", "kinds"])


def presence_readout(
    features_ND: torch.Tensor | np.ndarray,
    scenes: Sequence[Scene],
    folds: int = 5,
    seed: int = 0,
) -> Readout:
    """Fit a logistic regression for each kind and size, scored on pictures it was not fitted to.

    Pictures with the kind in another size are left out of a fit, so that each size has a read-out
    of its own: the most that a straight line can get. Raises LabError for unequal numbers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features_ND = np.asarray(features_ND, dtype=np.float64)
    if len(features_ND) != len(scenes):
        raise LabError(
            f"expected a feature for every scene, got {len(features_ND)} and {len(scenes)}."
        )
    line = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    shown = [{thing.kind: thing.size for thing in scene.things} for scene in scenes]
    auc = {size: np.full(len(KINDS), np.nan) for size in SIZES}
    for k, kind in enumerate(KINDS):
        size_N = np.array([sizes.get(kind, "") for sizes in shown])
        for size, found in auc.items():
            rows = (size_N == size) | (size_N == "")
            present = size_N[rows] == size
            if min(present.sum(), (~present).sum()) < 2 * folds:
                continue
            scores = cross_val_predict(
                line, features_ND[rows], present, cv=split, method="decision_function"
            )
            found[k] = roc_auc_score(present, scores)
    return Readout(auc, len(scenes), folds)
