"""Ranks of the right answers among all pictures and all texts, block by block.

Shapes: N images, M texts, D embedding, R rows and C columns of a block, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

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


class Scores(Protocol):
    """How alike pictures and texts are, asked for block by block.

    Both methods give scores twice: as pictures look for texts, and as texts look for pictures.
    For a cosine the two are the same.
    """

    num_images: int
    num_texts: int
    device: torch.device

    def own(self, image_of_text_M: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every text with its own picture, both [M]; no more than `chunk` texts at a time."""

    def block(self, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some pictures with some texts, both [R, C]; the next call may overwrite them."""


class Cosine:
    """The scores of normalised features, one a picture and one a text."""

    def __init__(self, images_ND: torch.Tensor, texts_MD: torch.Tensor) -> None:
        self.images_ND, self.texts_MD = images_ND, texts_MD
        self.num_images, self.num_texts = len(images_ND), len(texts_MD)
        self.device = images_ND.device
        self._memory = images_ND.new_empty(0)

    def own(self, image_of_text_M: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = zip(self.texts_MD.split(chunk), image_of_text_M.split(chunk), strict=True)
        own_M = torch.cat(
            [(texts_CD * self.images_ND[image_of_C]).sum(dim=1) for texts_CD, image_of_C in parts]
        )
        return own_M, own_M

    def block(self, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        rows_RD, columns_CD = self.images_ND[rows], self.texts_MD[columns]
        size = len(rows_RD) * len(columns_CD)
        if len(self._memory) < size:
            self._memory = rows_RD.new_empty(size)
        scores_RC = self._memory[:size].view(len(rows_RD), len(columns_CD))
        torch.mm(rows_RD, columns_CD.mT, out=scores_RC)
        return scores_RC, scores_RC


def rank_both_ways(
    scores: Scores, image_of_text_M: torch.Tensor, tie: Tie, chunk: int
) -> tuple[Ranks, Ranks]:
    """Ranks of every image's best own text, and of every text's image.

    Images without a text are distractors: their own rows are meaningless and not returned.
    """
    own_M, of_text_M = scores.own(image_of_text_M, chunk)
    best_N = own_M.new_full((scores.num_images,), -torch.inf)
    best_N = best_N.scatter_reduce(0, image_of_text_M, own_M, "amax")
    offsets = {
        "pessimistic": [-SAME_SCORE],
        "optimistic": [SAME_SCORE],
        "expected": [SAME_SCORE, -SAME_SCORE],
    }[tie]
    offset_L1 = own_M.new_tensor(offsets)[:, None]
    # Below a level that is no number lies nothing.
    levels = (
        (level_Q + offset_L1).nan_to_num(-torch.inf, neginf=-torch.inf)
        for level_Q in (best_N, of_text_M)
    )
    above_LN, above_LM = _count_foreign_above(scores, image_of_text_M, *levels, chunk)
    shared_M = (own_M >= best_N[image_of_text_M] - SAME_SCORE).long()
    shared_N = torch.zeros_like(above_LN[0]).scatter_add(0, image_of_text_M, shared_M)
    asked_N = torch.zeros_like(best_N, dtype=torch.bool).index_fill(0, image_of_text_M, True)
    return (
        _ranks(above_LN[:, asked_N], shared_N[asked_N]),
        _ranks(above_LM, torch.ones_like(above_LM[0])),
    )


def _ranks(above_LQ: torch.Tensor, own_Q: torch.Tensor) -> Ranks:
    above_LQ = above_LQ.cpu().numpy()
    return Ranks(above_LQ[0], above_LQ[-1] - above_LQ[0], own_Q.cpu().numpy())


def _count_foreign_above(
    scores: Scores,
    image_of_text_M: torch.Tensor,
    row_levels_LN: torch.Tensor,
    column_levels_LM: torch.Tensor,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many scores of foreign pairs exceed each image's and each text's levels.

    One pass for both directions; what is in memory are blocks [chunk, chunk].
    """
    above_LN = torch.zeros_like(row_levels_LN, dtype=torch.long)
    above_LM = torch.zeros_like(column_levels_LM, dtype=torch.long)
    memory = row_levels_LN.new_empty(chunk * chunk)
    for top in range(0, scores.num_images, chunk):
        rows = slice(top, min(top + chunk, scores.num_images))
        for left in range(0, scores.num_texts, chunk):
            columns = slice(left, min(left + chunk, scores.num_texts))
            of_image_RC, of_text_RC = scores.block(rows, columns)
            within_RC = memory[: of_image_RC.numel()].view(of_image_RC.shape)
            row_of_C = image_of_text_M[columns] - top
            inside = torch.nonzero((row_of_C >= 0) & (row_of_C < len(of_image_RC))).squeeze(1)
            for scores_RC in (of_image_RC, of_text_RC):
                scores_RC[row_of_C[inside], inside] = -torch.inf
            for level in range(len(row_levels_LN)):
                # Comparing into floats: torch sums those several times faster than booleans. What
                # is not at most the level is above it, so NaN never helps a right answer.
                torch.le(of_image_RC, row_levels_LN[level, rows, None], out=within_RC)
                above_LN[level, rows] += within_RC.shape[1] - within_RC.sum(dim=1).long()
                torch.le(of_text_RC, column_levels_LM[level, columns], out=within_RC)
                above_LM[level, columns] += within_RC.shape[0] - within_RC.sum(dim=0).long()
    return above_LN, above_LM
