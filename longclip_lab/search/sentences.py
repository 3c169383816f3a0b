"""Queries sentence by sentence: what each does for what is found, and how the rank improves.

N pictures, M queries, K pictures found, n sentences, S texts made of them, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from longclip_lab.attribution.subtexts import units_of
from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.evaluation.ranking import SAME_SCORE
from longclip_lab.plotting import Plottable
from longclip_lab.search.matches import Owed
from longclip_lab.text import split_sentences

if TYPE_CHECKING:
    from longclip_lab.search.picture_index import PictureIndex

_ROUNDS = 1000


def ranks_of(scores_SN: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """The places [S, K] of K pictures among all, 1 the best, behind those of the same score.

    >>> ranks_of(np.array([[0.1, 0.3, 0.3]]), [1, 0])
    array([[2, 3]])
    """
    own_SK = scores_SN[:, list(rows)] - SAME_SCORE
    return (scores_SN[:, None, :] >= own_SK[:, :, None]).sum(axis=2)


def owed_by_sentence(index: PictureIndex, text: str, rows: Sequence[int]) -> Owed:
    """What each sentence of a query does for the pictures `rows`; see `Owed`."""
    units = units_of(index.clip, text)
    everything = frozenset(range(len(units)))
    parts = [everything, *(everything - {one} for one in range(len(units)))]
    scores_SN = index.scores([units.join(part) for part in parts])
    scores_SK = scores_SN[:, list(rows)]
    return Owed(
        sentences=units.texts,
        spans=units.spans,
        drops=(scores_SK[0] - scores_SK[1:]).T,
        ranks=ranks_of(scores_SN[1:], rows).T,
    )


@dataclass(frozen=True)
class SentenceRanks(Plottable):
    """The place of the wanted picture after the first 1 ... n sentences of each of M queries.

    `ranks` [M, n]; a query that has fewer sentences keeps its last place. `whole` [M, n] says
    whether the model reads all of these sentences. `pictures` are those searched.
    """

    model: str
    pictures: int
    ranks: np.ndarray
    whole: np.ndarray

    def __len__(self) -> int:
        return len(self.ranks)

    def median(self, sentences: int) -> Interval:
        """The median place after so many sentences, with its 95% bootstrap interval."""
        ranks_M = self.ranks[:, sentences - 1].astype(float)
        if len(np.unique(ranks_M)) == 1:
            return Interval(ranks_M[0], ranks_M[0], ranks_M[0], len(ranks_M))
        from scipy.stats import bootstrap  # takes longer to import than all of this room

        drawn = bootstrap(
            (ranks_M,), np.median, n_resamples=_ROUNDS, method="percentile", batch=100,
            rng=np.random.default_rng(0),
        )  # fmt: skip
        low, high = drawn.confidence_interval
        return Interval(float(np.median(ranks_M)), float(low), float(high), len(ranks_M))

    def first(self, sentences: int, places: int = 1) -> Interval:
        """The share of queries whose picture is among the first `places`."""
        return bootstrap_mean((self.ranks[:, sentences - 1] <= places).astype(float))

    def better(self, sentences: int, other: SentenceRanks, others: int | None = None) -> Interval:
        """How many more queries end before than behind the other's place, as a share of all."""
        others = sentences if others is None else others
        gap_M = other.ranks[:, others - 1] - self.ranks[:, sentences - 1]
        return bootstrap_mean(np.sign(gap_M).astype(float))


def ranks_by_sentence(
    index: PictureIndex, texts: Sequence[str], names: Sequence[str], most: int | None = None
) -> SentenceRanks:
    """The place of picture `names[i]` after the first, the first two ... sentences of `texts[i]`.

    `most` is the largest number of sentences, by default that of the longest text. Nothing is said
    of texts that the model does not read to the end but in the result's `whole`.

    Raises LabError for other numbers of texts and names, a text without a sentence, and a name that
    is not in the index.
    """
    texts, names = list(texts), list(names)
    if not texts or len(texts) != len(names):
        raise LabError(
            f"expected a picture's name for every text, got {len(texts)} texts and {len(names)} "
            "names."
        )
    rows = [index.row(name) for name in names]
    spans = [split_sentences(text) for text in texts]
    for text, sentences in zip(texts, spans, strict=True):
        if not sentences:
            raise LabError(f"expected texts with at least one sentence, got {text!r}.")
    most = max(map(len, spans)) if most is None else most
    begun = [
        [text[: sentences[min(k, len(sentences) - 1)].end] for k in range(most)]
        for text, sentences in zip(texts, spans, strict=True)
    ]
    ranks_Mn = np.empty((len(texts), most), dtype=int)
    row_of = {text: row for row, text in enumerate(dict.fromkeys(chain.from_iterable(begun)))}
    scores_SN = index.scores(list(row_of))
    clip = index.clip
    whole_S = ~clip.tokenizer.encode_batch(list(row_of), clip.context_length).truncated
    for query, row in enumerate(rows):
        own_n = [row_of[text] for text in begun[query]]
        ranks_Mn[query] = ranks_of(scores_SN[own_n], [row])[:, 0]
    whole_Mn = np.array([[whole_S[row_of[text]] for text in parts] for parts in begun])
    return SentenceRanks(clip.name, len(index), ranks_Mn, whole_Mn)
