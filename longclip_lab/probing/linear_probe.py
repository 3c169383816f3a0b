"""Linear probes: what can be read off features, and what their principal directions encode.

A model may answer wrongly because its text says too little of a thing or because the picture's
feature does not hold it. A linear read-out asks the feature alone, without any text.

N pictures, D dimensions, K kinds.

PCM takes the first k of them for the coarse content of a picture. In the drawn world that can be
looked up: every fact of every scene is known.

N pictures, D embedding, K directions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.world import KINDS, SIZES, Scene

if TYPE_CHECKING:
    import pandas as pd


# --- What can be read off features by a straight line: is this kind of thing in the picture? ---


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


# --- What the principal directions of a set of image features encode ---


def explained_by(
    features_ND: torch.Tensor, facts: Mapping[str, Sequence[Hashable]], k: int = 16
) -> pd.DataFrame:
    """How much of each of the first k principal directions every fact explains.

    A DataFrame, index "direction" from 1: "variance", the direction's share of all variance, and
    for each fact the share of the direction's own variance that lies between the fact's values
    (epsilon squared: R squared of a one-way analysis of variance, less what chance would give; a
    little below 0 means nothing). Features are normalised first, as the loss does. Facts overlap
    where scenes make them depend on each other, so rows need not sum to 1.

    Raises LabError if k is larger than the number of directions, or a fact has not one value a
    picture or no two values.
    """
    unit_ND = F.normalize(features_ND.double(), dim=1)
    centred_ND = unit_ND - unit_ND.mean(0)
    if not 1 <= k <= min(len(centred_ND) - 1, centred_ND.shape[1]):
        raise LabError(
            f"expected k from 1 to {min(len(centred_ND) - 1, centred_ND.shape[1])}, the number of "
            f"directions of {len(centred_ND)} features, got {k}."
        )
    _, singular, directions = torch.linalg.svd(centred_ND, full_matrices=False)
    scores_NK = (centred_ND @ directions[:k].T).numpy()
    import pandas as pd

    table = pd.DataFrame(
        {"variance": (singular.square() / singular.square().sum())[:k].numpy()},
        index=pd.RangeIndex(1, k + 1, name="direction"),
    )
    for name, values in facts.items():
        table[name] = _epsilon_squared(scores_NK, name, values)
    return table


def _epsilon_squared(scores_NK: np.ndarray, name: str, values: Sequence[Hashable]) -> np.ndarray:
    number = len(scores_NK)
    if len(values) != number:
        raise LabError(f"fact {name!r}: expected {number} values, got {len(values)}.")
    _, group_N = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    groups = group_N.max() + 1
    if not 1 < groups < number:
        raise LabError(f"fact {name!r}: expected 2 to {number - 1} different values, got {groups}.")
    member_NG = np.eye(groups)[group_N]
    means_GK = member_NG.T @ scores_NK / member_NG.sum(0)[:, None]
    within_K = ((scores_NK - means_GK[group_N]) ** 2).sum(0)
    whole_K = ((scores_NK - scores_NK.mean(0)) ** 2).sum(0)
    return 1 - within_K / whole_K * (number - 1) / (number - groups)
