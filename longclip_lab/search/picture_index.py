"""An index over the reader's own folder of pictures.

N pictures, M queries, D embedding, K answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch.nn.functional as F

from longclip_lab.errors import COUNT, LabError
from longclip_lab.files import readable
from longclip_lab.images import Listing, list_pictures
from longclip_lab.models import encode_texts
from longclip_lab.search.matches import Matches, Owed
from longclip_lab.search.nearest import Backend, Nearest, nearest_neighbours
from longclip_lab.search.queries import checked, how_read, warn_unread
from longclip_lab.search.sentences import owed_by_sentence, ranks_of
from longclip_lab.search.store import FeatureStore, Known, cache_folder, tower_identity
from longclip_lab.search.updating import Update, bring_up_to_date

BROKEN = "broken picture"


@dataclass(frozen=True)
class PictureIndex:
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
    backend: str
    _nearest: Nearest = field(repr=False)

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
        rows_MK = self._nearest(queries_MD, min(top, len(self)))
        found = []
        for one, reading, query_D, rows_K in zip(texts, readings, queries_MD, rows_MK, strict=True):
            scores_K = self.features_ND[rows_K] @ query_D
            order_K = np.lexsort((rows_K, -scores_K))
            best_K = rows_K[order_K]
            found.append(
                Matches(
                    query=one,
                    model=self.clip.name,
                    root=self.root,
                    names=tuple(self.names[row] for row in best_K),
                    scores=scores_K[order_K],
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
    backend: Backend = "auto",
    verify: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> PictureIndex:
    """Read a folder of pictures, and the folders in it, into an index.

    Args:
        clip: any model of the lab.
        folder: the pictures; nothing is written there.
        cache: where features are kept for the next call, by default `cache_folder()`. They belong
            to the image tower's weights, its preprocessing and each file's content, so another
            model, a changed picture or a deleted one never meets an old feature.
        backend: "sklearn", "faiss", or "auto": faiss if it is installed.
        verify: compare the content of every file, not only its size and time of change.
        progress: show a bar over the pictures that are new or changed.

    A call that is interrupted goes on where it was. Broken pictures are left out and named in
    `left_out`.

    Raises LabError for no such folder, one without a picture that can be read, and an unknown
    backend.
    """
    COUNT.check("batch_size", batch_size)
    place = (cache_folder() if cache is None else Path(cache).expanduser()) / "search"
    listing = list_pictures(folder, ignore=place)
    if not listing.files:
        raise LabError(_nothing(listing))
    store = FeatureStore(place, listing.root, tower_identity(clip))
    known, update = bring_up_to_date(clip, listing, store, verify, batch_size, progress)
    left_out = listing.left_out | _broken(known)
    names = tuple(name for name, one in known.items() if one.feature is not None)
    if not names:
        raise LabError(_nothing(Listing(listing.root, (), left_out)))
    features_ND = np.stack([known[name].feature for name in names])
    used, nearest = nearest_neighbours(features_ND, backend)
    return PictureIndex(
        clip, listing.root, names, features_ND, left_out, update, store.folder, used, nearest
    )


def _broken(known: dict[str, Known]) -> dict[str, list[str]]:
    names = [
        f"{readable(name)} ({one.entry.defect})" for name, one in known.items() if one.entry.defect
    ]
    return {BROKEN: names} if names else {}


def _nothing(listing: Listing) -> str:
    counts = [f"{len(names)} x {why} ({names[0]}…)" for why, names in listing.left_out.items()]
    rest = f"; it holds {'; '.join(counts)}" if counts else ", it is empty"
    return f"Expected pictures (JPEG, PNG, WebP, …) in {listing.root}{rest}."
