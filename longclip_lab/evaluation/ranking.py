"""Ranks of the right answers among all pictures and all texts, block by block.

Shapes: N images, M texts, D embedding, R rows and C columns of a block, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Tie = Literal["pessimistic", "optimistic", "expected"]

# Two cosines this close are the same score. A float32 product of unit vectors is off by some
# 1e-7, differently in every block of it and in every batch of the encoder, so duplicates would
# otherwise be ordered by noise.
SAME_SCORE = 1e-6


@dataclass(frozen=True)
class Ranks:
    """For every query: foreign answers ahead of the best own one, level with it, and how many
    own answers share the best place. `ahead` and `level` are known as far as the rule needs:
    pessimistic counts level ones as ahead, optimistic drops them."""

    ahead: np.ndarray
    level: np.ndarray
    own: np.ndarray

    def rank(self) -> np.ndarray:
        """Rank of the best own answer, from 1; its expectation if level ones are shuffled."""
        if not self.level.any():
            return self.ahead + 1
        return self.ahead + 1 + self.level / (self.own + 1)

    def hits(self, k: int) -> np.ndarray:
        """Probability, 0 to 1, that an own answer is among the first k."""
        slots = k - self.ahead
        miss = np.ones(len(slots))
        for slot in range(min(k, int(self.level.max(initial=0)))):
            # Level answers in random order: the slot holds a foreign one, given no own before.
            foreign = np.maximum(self.level - slot, 0)
            miss = np.where(slot < slots, miss * foreign / (foreign + self.own), miss)
        return np.where(slots <= 0, 0.0, np.where(slots > self.level, 1.0, 1 - miss))


def rank_both_ways(
    images_ND: torch.Tensor,
    texts_MD: torch.Tensor,
    image_of_text_M: torch.Tensor,
    tie: Tie,
    chunk: int,
) -> tuple[Ranks, Ranks]:
    """Ranks of every image's best own text, and of every text's image; features normalised.

    Images without a text are distractors: their own rows are meaningless and not returned.
    """
    own_M = _own_scores(images_ND, texts_MD, image_of_text_M, chunk)
    best_N = own_M.new_full((len(images_ND),), -torch.inf)
    best_N = best_N.scatter_reduce(0, image_of_text_M, own_M, "amax")
    offsets = {
        "pessimistic": [-SAME_SCORE],
        "optimistic": [SAME_SCORE],
        "expected": [SAME_SCORE, -SAME_SCORE],
    }[tie]
    offset_L1 = own_M.new_tensor(offsets)[:, None]
    above_LN, above_LM = _count_foreign_above(
        images_ND, texts_MD, image_of_text_M, best_N + offset_L1, own_M + offset_L1, chunk
    )
    shared_M = (own_M >= best_N[image_of_text_M] - SAME_SCORE).long()
    shared_N = torch.zeros_like(above_LN[0]).scatter_add(0, image_of_text_M, shared_M)
    asked_N = torch.isfinite(best_N)
    return (
        _ranks(above_LN[:, asked_N], shared_N[asked_N]),
        _ranks(above_LM, torch.ones_like(above_LM[0])),
    )


def _ranks(above_LQ: torch.Tensor, own_Q: torch.Tensor) -> Ranks:
    above_LQ = above_LQ.cpu().numpy()
    return Ranks(above_LQ[0], above_LQ[-1] - above_LQ[0], own_Q.cpu().numpy())


def _own_scores(
    images_ND: torch.Tensor, texts_MD: torch.Tensor, image_of_text_M: torch.Tensor, chunk: int
) -> torch.Tensor:
    own = [
        (texts_CD * images_ND[image_of_C]).sum(dim=1)
        for texts_CD, image_of_C in zip(
            texts_MD.split(chunk), image_of_text_M.split(chunk), strict=True
        )
    ]
    return torch.cat(own)


def _count_foreign_above(
    images_ND: torch.Tensor,
    texts_MD: torch.Tensor,
    image_of_text_M: torch.Tensor,
    row_levels_LN: torch.Tensor,
    column_levels_LM: torch.Tensor,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many scores of foreign pairs exceed each image's and each text's levels.

    One product for both directions; never more than two blocks [chunk, chunk] at a time.
    """
    above_LN = torch.zeros_like(row_levels_LN, dtype=torch.long)
    above_LM = torch.zeros_like(column_levels_LM, dtype=torch.long)
    memory = images_ND.new_empty(2, chunk * chunk)
    for top in range(0, len(images_ND), chunk):
        rows_RD = images_ND[top : top + chunk]
        rows = slice(top, top + len(rows_RD))
        for left in range(0, len(texts_MD), chunk):
            columns_CD = texts_MD[left : left + chunk]
            columns = slice(left, left + len(columns_CD))
            size = len(rows_RD), len(columns_CD)
            scores_RC, exceeds_RC = memory[:, : size[0] * size[1]].view(2, *size)
            torch.mm(rows_RD, columns_CD.mT, out=scores_RC)
            row_of_C = image_of_text_M[columns] - top
            inside = torch.nonzero((row_of_C >= 0) & (row_of_C < size[0])).squeeze(1)
            scores_RC[row_of_C[inside], inside] = -torch.inf
            for level in range(len(row_levels_LN)):
                # Comparing into floats: torch sums those several times faster than booleans.
                torch.gt(scores_RC, row_levels_LN[level, rows, None], out=exceeds_RC)
                above_LN[level, rows] += exceeds_RC.sum(dim=1).long()
                torch.gt(scores_RC, column_levels_LM[level, columns], out=exceeds_RC)
                above_LM[level, columns] += exceeds_RC.sum(dim=0).long()
    return above_LN, above_LM
