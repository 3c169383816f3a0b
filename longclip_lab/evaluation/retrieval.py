"""Retrieval in both directions: recall at k with intervals.

Shapes: N images, M texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.errors import COUNT, MANY, LabError, suggest
from longclip_lab.evaluation.intervals import Interval, bootstrap_mean
from longclip_lab.evaluation.ranking import Cosine, Ranks, Scores, Tie, rank_both_ways

if TYPE_CHECKING:
    import pandas as pd


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
    images_ND = _features(image_features_ND, "image features")
    texts_MD = _features(text_features_MD, "text features").to(images_ND)
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


def _features(features: torch.Tensor | np.ndarray, name: str) -> torch.Tensor:
    """Normalised rows in float32 (float64 stays)."""
    features = torch.as_tensor(features)
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise LabError(
            f"{name}: expected a non-empty float matrix [number, dimension], got "
            f"{features.dtype} of shape {list(features.shape)}."
        )
    bad = len(features) - int(torch.isfinite(features).all(dim=1).sum())
    if bad:
        raise LabError(
            f"{name}: expected finite numbers, got NaN or infinity in {bad} of {len(features)} "
            "rows; look for a diverged model or a broken input."
        )
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


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
