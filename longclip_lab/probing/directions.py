"""What the principal directions of a set of image features encode.

PCM takes the first k of them for the coarse content of a picture. In the drawn world that can be
looked up: every fact of every scene is known.

N pictures, D embedding, K directions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.errors import LabError

if TYPE_CHECKING:
    import pandas as pd


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
