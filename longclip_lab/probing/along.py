"""Reading along: which pictures does a model find after each token of one caption?

C cuts, K pictures shown, N pictures in the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.nn import functional as F

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, encode_images
from longclip_lab.probing.cuts import encode_cuts


@dataclass(frozen=True)
class ReadAlong:
    """What a model finds among N pictures after each of C cuts of the caption of one of them.

    `cuts` [C] count content tokens. `ranks` [C] is the place of the caption's own picture, 1 the
    best, behind pictures of the same score. `found` [C, K] are the indices in `pairs` of the K
    best pictures, best first.
    """

    model: str
    context_length: int
    tokenizer: str
    pairs: Any
    index: int
    cuts: np.ndarray
    ranks: np.ndarray
    found: np.ndarray

    @property
    def first_found(self) -> int | None:
        """The first cut from which on the own picture stays in front; None if it does not."""
        missed = np.flatnonzero(self.ranks > 1)
        if not len(missed):
            return int(self.cuts[0])
        return int(self.cuts[missed[-1] + 1]) if missed[-1] + 1 < len(self.cuts) else None


def read_along(
    clip: Clip, pairs: Any, index: int = 0, cuts: Sequence[int] | None = None, show: int = 5
) -> ReadAlong:
    """Cut one long caption after each number of tokens and look for its picture among `pairs`.

    Args:
        pairs: the pool; the caption is `pairs.long[index]`.
        cuts: numbers of content tokens, increasing; default every token that the model reads.
        show: how many of the best pictures to keep.

    Raises LabError for an index outside the pool, for no pictures to show, and for cuts that the
    model cannot read.
    """
    if not 0 <= index < len(pairs) or not 1 <= show <= len(pairs):
        raise LabError(
            f"expected a caption from 0 to {len(pairs) - 1} and 1 to {len(pairs)} pictures to "
            f"show, got index={index} and show={show}."
        )
    tokens = clip.tokenize([pairs.long[index]])
    most = int(tokens.lengths_B[0]) - 2
    cuts = list(range(1, most + 1)) if cuts is None else list(cuts)
    if not cuts or min(cuts) < 1 or max(cuts) > most:
        raise LabError(
            f"expected cuts from 1 to {most} content tokens of caption {index}, got {cuts}."
        )
    images_ND = F.normalize(encode_images(clip, pairs.images), dim=1)
    texts_CD = F.normalize(encode_cuts(clip, tokens, cuts)[:, 0], dim=1)
    cosines_CN = (texts_CD @ images_ND.T).numpy()
    ranks_C = (cosines_CN >= cosines_CN[:, [index]]).sum(1)
    found_CK = np.argsort(-cosines_CN, axis=1, kind="stable")[:, :show]
    return ReadAlong(
        clip.name, clip.context_length, clip.tokenizer.name, pairs, index,
        np.array(cuts), ranks_C, found_CK,
    )  # fmt: skip
