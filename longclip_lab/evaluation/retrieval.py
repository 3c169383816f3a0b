"""Retrieval in both directions: recall at k with intervals.

Shapes: N images, M texts, D embedding, Q queries (images or texts), R rows and C columns of a
block, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.errors import COUNT, MANY, LabError, suggest
from longclip_lab.stats import Interval, bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd


# --- Ranks of the right answers among all pictures and all texts, block by block ---

Tie = Literal["pessimistic", "optimistic", "expected"]

# Two cosines this close are the same score. A float32 product of unit vectors is off by some
# 1e-7, differently in every block of it and in every batch of the encoder, so duplicates would
# otherwise be ordered by noise.
SAME_SCORE = 1e-6


@dataclass(frozen=True)
class Ranks:
    """For every query: negatives ranked above the best positive, tied with it, and how many
    positives share the best place. `ahead` and `level` are known as far as the rule needs:
    pessimistic counts tied ones as ahead, optimistic drops them."""

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
        # Of k places so many are left for the group of tied answers.
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
        # Written into the same memory each time: a fresh block would be paged in anew.
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
    # First the positives alone, M scores; then one pass over all N x M counts what beats them. No
    # row is ever sorted, and no full matrix is in memory.
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
    # "expected" needs both ends of the tie: how many are surely ahead, and how many at most.
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
            # A query's own answers must not count as negatives, all texts of an image included.
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


# --- Retrieval in both directions: recall at k with intervals ---


@dataclass(frozen=True)
class RetrievalScores:
    """Recall at k of both directions, and the rank of every query's answer."""

    i2t: dict[int, Interval]
    """Image to text: share of images with one of their texts among the first k."""
    t2i: dict[int, Interval]
    """Text to image: share of texts with their image among the first k."""
    i2t_ranks: np.ndarray = field(repr=False)
    """Rank, from 1, of the best own text of each image that has one, in the images' order."""
    t2i_ranks: np.ndarray = field(repr=False)
    """Rank, from 1, of each text's image."""
    num_images: int
    num_texts: int
    tie: Tie

    def scores(self) -> dict[str, Interval]:
        """All recalls by name: "i2t R@1", ..."""
        both = {"i2t": self.i2t, "t2i": self.t2i}
        return {f"{way} R@{k}": score for way, by_k in both.items() for k, score in by_k.items()}

    def table(self) -> pd.DataFrame:
        """One row a direction and k, in percent."""
        import pandas as pd

        rows = [
            (*name.split(), 100 * s.value, 100 * s.low, 100 * s.high, s.n)
            for name, s in self.scores().items()
        ]
        return pd.DataFrame(rows, columns=["direction", "score", "percent", "low", "high", "n"])


@torch.no_grad()
def retrieval(
    image_features_ND: torch.Tensor,
    text_features_MD: torch.Tensor,
    image_of_text_M: Sequence[int] | torch.Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    tie: Tie = "pessimistic",
    chunk: int = 1024,
    bootstrap: int = 1000,
    seed: int = 0,
) -> RetrievalScores:
    """R@k image-to-text and text-to-image by cosine, as CLIP and Long-CLIP report them.

    Features need not be normalised. `image_of_text_M[j]` is the image of text j; by default
    text j belongs to image j. An image with several texts is found when any of them is among
    the first k of all texts; its rank is that of its best text, which its other texts do not
    push down. Images without a text are distractors: candidates, but no queries.

    Ties, scores equal to 1e-6: "pessimistic" ranks the right answer last among them (default:
    a model that gives everything the same score gets 0), "optimistic" first, "expected"
    averages over their random order.

    Intervals are percentile bootstraps over images; the texts of an image are drawn together.
    Memory beyond the normalised features: two blocks of chunk x chunk scores, so 100,000 x
    100,000 pairs fit a laptop. Raises LabError for shapes that do not fit, NaN, a text
    without its image, k < 1.

    >>> eye = torch.eye(3)
    >>> retrieval(eye, eye[[0, 2, 1]]).t2i_ranks.tolist()
    [1, 3, 3]
    """
    images_ND = unit_features(image_features_ND, "image features", "number, dimension")
    texts_MD = unit_features(text_features_MD, "text features", "number, dimension").to(images_ND)
    if images_ND.shape[1] != texts_MD.shape[1]:
        raise LabError(
            f"Expected images and texts of the same embedding size, got {images_ND.shape[1]} "
            f"and {texts_MD.shape[1]}."
        )
    scores = Cosine(images_ND, texts_MD)
    return scored_retrieval(scores, image_of_text_M, ks, tie, chunk, bootstrap, seed)


def scored_retrieval(
    scores: Scores,
    image_of_text_M: Sequence[int] | torch.Tensor | None,
    ks: Sequence[int],
    tie: Tie,
    chunk: int,
    bootstrap: int,
    seed: int,
) -> RetrievalScores:
    """`retrieval` by any scores that are made block by block."""
    of_text_M = _image_of_text(image_of_text_M, scores.num_images, scores.num_texts)
    _check_options(ks, tie, chunk, bootstrap)
    groups_M = of_text_M.cpu().numpy()
    i2t, t2i = rank_both_ways(scores, of_text_M.to(scores.device), tie, chunk)
    return RetrievalScores(
        i2t=_recall(i2t, ks, np.arange(len(i2t.ahead)), bootstrap, seed),
        t2i=_recall(t2i, ks, groups_M, bootstrap, seed),
        i2t_ranks=i2t.rank(),
        t2i_ranks=t2i.rank(),
        num_images=scores.num_images,
        num_texts=scores.num_texts,
        tie=tie,
    )


def _recall(
    ranks: Ranks, ks: Sequence[int], groups: np.ndarray, bootstrap: int, seed: int
) -> dict[int, Interval]:
    return {int(k): bootstrap_mean(ranks.hits(k), groups, bootstrap, seed) for k in ks}


def unit_features(features: torch.Tensor | np.ndarray, name: str, dims: str) -> torch.Tensor:
    """Features of length 1 in their last dimension, in float32 (float64 stays).

    Raises LabError, naming what is wrong, unless they are finite floats with the dimensions `dims`,
    "number, dimension", none of them 0.
    """
    features = torch.as_tensor(features)
    is_of_form = features.ndim == 1 + dims.count(",") and 0 not in features.shape
    if not is_of_form or not features.is_floating_point():
        raise LabError(
            f"{name}: expected floats [{dims}], none of them 0, got {features.dtype} of shape "
            f"{list(features.shape)}."
        )
    bad = len(features) - int(torch.isfinite(features).flatten(1).all(dim=1).sum())
    if bad:
        raise LabError(
            f"{name}: expected finite numbers, got NaN or infinity in {bad} of {len(features)} "
            "rows; look for a diverged model or a broken input."
        )
    # Half precision has 3 digits: too few to order a thousand cosines.
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def _image_of_text(
    image_of_text_M: Sequence[int] | torch.Tensor | None, num_images: int, num_texts: int
) -> torch.Tensor:
    if image_of_text_M is None:
        if num_images != num_texts:
            raise LabError(
                f"Expected one text an image, got {num_images} images and {num_texts} texts; "
                "say in image_of_text which image each text belongs to."
            )
        return torch.arange(num_texts)
    of_text_M = torch.as_tensor(image_of_text_M)
    if of_text_M.shape != (num_texts,) or of_text_M.is_floating_point():
        raise LabError(
            f"image_of_text: expected {num_texts} whole numbers, one a text, got "
            f"{of_text_M.dtype} of shape {list(of_text_M.shape)}."
        )
    outside = of_text_M[(of_text_M < 0) | (of_text_M >= num_images)]
    if len(outside):
        raise LabError(
            f"image_of_text: expected numbers from 0 to {num_images - 1}, got {int(outside[0])}."
        )
    return of_text_M.long()


def _check_options(ks: Sequence[int], tie: str, chunk: int, bootstrap: int) -> None:
    if not len(ks):
        raise LabError("ks: expected at least one number of results, got none.")
    for k in ks:
        COUNT.check("ks, the numbers of results,", k)
    if tie not in get_args(Tie):
        raise LabError(f"No rule {tie!r} for ties. {suggest(str(tie), get_args(Tie))}")
    COUNT.check("chunk", chunk)
    MANY.check("The number of bootstrap rounds", bootstrap)
