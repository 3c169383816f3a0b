"""An index over a folder of images, and queries as long as they like.

N pictures, M queries, K pictures found, n sentences, S texts made of them, D embedding.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch.nn.functional as F

from longclip_lab.attribution.contribution import units_of
from longclip_lab.data.pairs import known_part
from longclip_lab.errors import COUNT, LabError, LabWarning
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.evaluation.retrieval import SAME_SCORE
from longclip_lab.files import readable, to_json
from longclip_lab.images import Listing, list_images
from longclip_lab.models import encode_texts
from longclip_lab.plotting import Gallery, Plottable
from longclip_lab.search.store import (
    FeatureStore,
    Update,
    bring_up_to_date,
    cache_folder,
    tower_identity,
)
from longclip_lab.text import split_sentences

# --- What a search finds: pictures with scores, how much of the query was read, whose doing ---


@dataclass(frozen=True)
class QueryRead:
    """How much of a query the model reads: `read` of its `tokens`, start and end not counted.

    `unread` is the end of the query that the model does not read (it stands behind its context, or
    behind an end token), as text; None where
    the tokenizer does not tell characters.
    """

    tokens: int
    read: int
    context_length: int
    unread: str | None = ""

    @property
    def whole(self) -> bool:
        return self.read == self.tokens


@dataclass(frozen=True)
class Owed:
    """What each sentence of the query does for each picture found: leave one out.

    `sentences` [n] are those that the model reads, `spans` [n] their characters in the query.
    `drops` [K, n] is the score with all of them less that without one (of an only sentence: less
    that of the empty text). `ranks` [K, n] is the picture's place among all without it.
    """

    sentences: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    drops: np.ndarray
    ranks: np.ndarray

    def most(self, hit: int) -> int:
        """The sentence that picture number `hit` (from 0) owes most of its score to."""
        return int(self.drops[hit].argmax())


@dataclass(frozen=True)
class Matches(Gallery):
    """The pictures nearest to a query, best first.

    `names` are relative to `root`; `scores` [K] are cosine similarities; `pictures` counts those
    that were searched. `owed` is there if it was asked for (`explain=True`).
    """

    query: str
    model: str
    root: Path
    names: tuple[str, ...]
    scores: np.ndarray
    pictures: int
    reading: QueryRead
    owed: Owed | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]

    def table(self):
        """A DataFrame, a row a picture: score, name and, if known, the sentence it owes most."""
        import pandas as pd

        rows = pd.DataFrame(
            {"score": self.scores.round(4), "picture": [*map(readable, self.names)]}
        )
        if self.owed is not None:
            best = [self.owed.most(hit) for hit in range(len(self))]
            rows["owes most to"] = [self.owed.sentences[one] for one in best]
            rows["rank without it"] = [self.owed.ranks[hit, one] for hit, one in enumerate(best)]
        return rows.set_axis(pd.RangeIndex(1, len(rows) + 1, name="rank"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        hits = [
            {"rank": rank, "score": round(float(score), 6), "picture": readable(name)}
            for rank, (name, score) in enumerate(zip(self.names, self.scores, strict=True), 1)
        ]
        if self.owed is not None:
            for hit, drops, ranks in zip(hits, self.owed.drops, self.owed.ranks, strict=True):
                hit["without each sentence"] = [
                    {"drop": round(float(drop), 6), "rank": int(rank)}
                    for drop, rank in zip(drops, ranks, strict=True)
                ]
        facts = {
            "query": self.query,
            "tokens": self.reading.tokens,
            "tokens read": self.reading.read,
            "unread": self.reading.unread,
            "hits": hits,
        }
        return facts | ({"sentences": list(self.owed.sentences)} if self.owed is not None else {})

    def to_json(self) -> str:
        return to_json(self.to_dict(), indent=2, ensure_ascii=False)


# --- Queries: what of them a model reads, and words that it does not know ---

_SHOWN = 160  # characters of an unread end in a message


def checked(texts: str | Sequence[str]) -> list[str]:
    """The queries as a list. Raises LabError for none, and for one that says nothing."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise LabError("Expected at least one query, got none.")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise LabError(f"Expected a query in words, got {text!r}.")
    return texts


def how_read(clip: Any, text: str) -> QueryRead:
    """How much of a query the model reads; its unread end is quoted if the tokenizer can tell."""
    tokens = clip.tokenize([text])
    read = int(tokens.lengths_B[0]) - 2
    if not tokens.num_truncated:
        return QueryRead(read, read, clip.context_length)
    if not hasattr(clip.tokenizer, "tokenize"):
        full = clip.tokenizer.encode_batch([text], clip.context_length).full_lengths
        return QueryRead(int(full[0]) - 2, read, clip.context_length, None)
    spans = clip.tokenizer.tokenize(text).spans
    end = spans[read - 1][1] if read else 0
    return QueryRead(len(spans), read, clip.context_length, text[end:].strip())


def warn_unread(model: str, reading: QueryRead) -> None:
    """Say which end of a query the model does not read, and why."""
    if reading.whole:
        return
    missing = reading.tokens - reading.read
    quoted, way = "", "Use a model with more positions, or `stretch` this one."
    if reading.read + 2 < reading.context_length:
        way = "It holds an end token, behind which nothing is read: take that out."
    if reading.unread is not None:
        start = reading.unread[:_SHOWN] + "…" * (len(reading.unread) > _SHOWN)
        quoted = f": “{start}”"
    warnings.warn(
        f"{model} reads {reading.read} of the query's {reading.tokens} tokens "
        f"({reading.context_length} positions). The last {missing} change nothing{quoted}. {way}",
        LabWarning,
        stacklevel=3,
    )


def readable_query(clip: Any, text: str) -> str:
    """The query in words that the model has: the tiny models know those of the drawn world only.

    Other words are left out and named in a LabWarning; a query for any other model comes back as
    it is. Raises LabError if no word is left.
    """
    words = getattr(clip.tokenizer, "words", None)
    if words is None:
        return text
    kept, unknown = known_part(text, words)
    if not any(character.isalnum() for character in kept):
        raise LabError(
            f"{clip.name} knows the {len(words)} words of the drawn world and none of {text!r}. "
            "Take another model, such as ViT-B-16 with --pretrained openai."
        )
    if unknown:
        warnings.warn(
            f"{clip.name} knows the {len(words)} words of the drawn world; left out of the query: "
            f"{', '.join(dict.fromkeys(unknown))}. Expect nothing of what it finds.",
            LabWarning,
            stacklevel=2,
        )
    return kept if unknown else text


# --- Queries sentence by sentence: what each does for what is found, and how the rank ---

_ROUNDS = 1000


def ranks_of(scores_SN: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """The places [S, K] of K pictures among all, 1 the best, behind those of the same score.

    >>> ranks_of(np.array([[0.1, 0.3, 0.3]]), [1, 0])
    array([[2, 3]])
    """
    own_SK = scores_SN[:, list(rows)] - SAME_SCORE
    return (scores_SN[:, None, :] >= own_SK[:, :, None]).sum(axis=2)


def owed_by_sentence(index: ImageIndex, text: str, rows: Sequence[int]) -> Owed:
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
    index: ImageIndex, texts: Sequence[str], names: Sequence[str], most: int | None = None
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


# --- An index over the reader's own folder of pictures ---


@dataclass(frozen=True)
class ImageIndex:
    """The pictures of a folder, ready to be searched.

    `names` [N] are relative to `root`, sorted; `features_ND` are float32, normalised. `left_out`
    names what is not searched, by reason; `update` says what was done; `cache` is the folder that
    holds the features.
    """

    clip: Any
    root: Path
    names: tuple[str, ...]
    features_ND: np.ndarray
    left_out: dict[str, list[str]]
    update: Update
    cache: Path

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def row(self, name: str) -> int:
        """The number of a picture, from 0. Raises LabError for a name that is not in the index."""
        if name not in self._rows:
            raise LabError(
                f"There is no picture {name!r} in the index; its {len(self)} names are relative to "
                f"{self.root}, such as {self.names[0]!r}."
            )
        return self._rows[name]

    def scores(self, texts: str | Sequence[str]) -> np.ndarray:
        """Cosine similarities [M, N] of texts with all pictures."""
        return self._encoded(texts) @ self.features_ND.T

    def rank(self, text: str, name: str) -> int:
        """The place of a picture for a query, 1 the best, behind those of the same score."""
        return int(ranks_of(self.scores(checked(text)), [self.row(name)])[0, 0])

    def owed(self, text: str, names: Sequence[str]) -> Owed:
        """What each sentence of a query does for the pictures `names`, found or not.

        Raises LabError for a name that is not in the index and a text without a sentence.
        """
        return owed_by_sentence(self, text, [self.row(name) for name in names])

    @overload
    def search(
        self, text: str, top: int = ..., explain: bool = ..., warn: bool = ...
    ) -> Matches: ...

    @overload
    def search(
        self, text: Sequence[str], top: int = ..., explain: bool = ..., warn: bool = ...
    ) -> list[Matches]: ...
    def search(
        self, text: str | Sequence[str], top: int = 5, explain: bool = False, warn: bool = True
    ) -> Matches | list[Matches]:
        """The `top` pictures nearest to a query (or to each of several), best first.

        With `explain` every sentence of the query is left out once, to see what it does for each
        picture found. A query that is longer than the model's context is answered with a
        LabWarning that quotes what is not read, unless `warn` is False: the answer's `reading`
        tells it too.

        Raises LabError for fewer than one picture to find, for no query, and for one without words.
        """
        COUNT.check("top, the number of pictures to find,", top)
        texts = checked(text)
        readings = [how_read(self.clip, one) for one in texts]
        for reading in readings if warn else ():
            warn_unread(self.clip.name, reading)
        queries_MD = self._encoded(texts)
        found = []
        for one, reading, query_D in zip(texts, readings, queries_MD, strict=True):
            scores_N = self.features_ND @ query_D
            best_K = np.argsort(-scores_N, kind="stable")[:top]
            found.append(
                Matches(
                    query=one,
                    model=self.clip.name,
                    root=self.root,
                    names=tuple(self.names[row] for row in best_K),
                    scores=scores_N[best_K],
                    pictures=len(self),
                    reading=reading,
                    owed=owed_by_sentence(self, one, best_K) if explain else None,
                )
            )
        return found[0] if isinstance(text, str) else found

    def _encoded(self, texts: str | Sequence[str]) -> np.ndarray:
        features_MD = encode_texts(self.clip, texts).features_ND
        return F.normalize(features_MD, dim=-1).numpy()


def index(
    clip: Any,
    folder: str | os.PathLike[str],
    cache: str | os.PathLike[str] | None = None,
    verify: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> ImageIndex:
    """Read a folder of pictures, and the folders in it, into an index.

    Args:
        clip: any model of the lab.
        folder: the pictures; nothing is written there.
        cache: where features are kept for the next call, by default `cache_folder()`. They belong
            to the image tower's weights, its preprocessing and each file's content, so another
            model, a changed picture or a deleted one never meets an old feature.
        verify: compare the content of every file, not only its size and time of change.
        progress: show a bar over the pictures that are new or changed.

    A call that is interrupted goes on where it was. Broken pictures are left out and named in
    `left_out`.

    Raises LabError for no such folder and one without a picture that can be read.
    """
    COUNT.check("batch_size", batch_size)
    place = (cache_folder() if cache is None else Path(cache).expanduser()) / "search"
    listing = list_images(folder, ignore=place)
    if not listing.files:
        raise LabError(_nothing(listing))
    store = FeatureStore(place, listing.root, tower_identity(clip))
    known, update = bring_up_to_date(clip, listing, store, verify, batch_size, progress)
    broken = [f"{readable(name)} ({one.defect})" for name, one in known.items() if one.defect]
    left_out = listing.left_out | ({"broken picture": broken} if broken else {})
    names = tuple(name for name, one in known.items() if one.feature is not None)
    if not names:
        raise LabError(_nothing(Listing(listing.root, (), left_out)))
    features_ND = np.stack([known[name].feature for name in names])
    return ImageIndex(clip, listing.root, names, features_ND, left_out, update, store.folder)


def _nothing(listing: Listing) -> str:
    counts = [f"{len(names)} x {why} ({names[0]}…)" for why, names in listing.left_out.items()]
    rest = f"; it holds {'; '.join(counts)}" if counts else ", it is empty"
    return f"Expected pictures (JPEG, PNG, WebP, …) in {listing.root}{rest}."
