"""Bring the stored features of a folder up to date: only what is new or changed is encoded.

B batch, D embedding, H W picture.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from longclip_lab.images import ImageError, Listing, PictureFile, decode_image
from longclip_lab.models.encoding import check_finite, evaluating
from longclip_lab.search.store import Entry, FeatureStore, Known

RUN = 128
"""Pictures that are written together: what an interruption can cost."""


@dataclass(frozen=True)
class Update:
    """What a call did: pictures `kept` as they were, `recognised` by content (moved, copied or
    only touched), `encoded`, and `dropped` from the cache because they are gone, in `seconds`.
    Broken pictures are in none of these."""

    kept: int
    recognised: int
    encoded: int
    dropped: int
    seconds: float

    def __str__(self) -> str:
        parts = {"encoded": self.encoded, "known": self.kept + self.recognised}
        parts |= {"gone": self.dropped} if self.dropped else {}
        told = ", ".join(f"{count:,} {name}" for name, count in parts.items())
        return f"{told}, in {self.seconds:.1f} s"


@dataclass(frozen=True)
class _Read:
    """A file as it was read: what is known of it, with its feature [D] if its content is not new,
    else its pixels [3, H, W]; neither for a broken picture."""

    name: str
    entry: Entry
    feature: np.ndarray | None = None
    pixels_3HW: torch.Tensor | None = None


def bring_up_to_date(
    clip: Any,
    listing: Listing,
    store: FeatureStore,
    verify: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[dict[str, Known], Update]:
    """What is known of every file of `listing`, in its order, and what was done for it.

    With `verify` the content of every file is read and compared, whatever its size and time say.
    Files that vanish while this runs are left out.
    """
    began = time.perf_counter()
    stored = store.load()
    names = {file.name for file in listing.files}
    dropped = len(stored.keys() - names)
    known = {} if verify else {
        file.name: stored[file.name]
        for file in listing.files
        if file.name in stored and stored[file.name].entry.trusted(file)
    }  # fmt: skip
    kept, encoded = sum(one.feature is not None for one in known.values()), 0
    of_content = {one.entry.digest: one for one in stored.values() if one.entry.digest}
    todo = [file for file in listing.files if file.name not in known]
    with tqdm(total=len(todo), unit="picture", disable=not (progress and todo)) as bar:
        for run in _runs(todo, RUN):
            made: dict[str, Known] = {}
            for batch in _runs(run, batch_size):
                read = _read_all(clip, batch, of_content)
                made.update(_encoded(clip, read))
                encoded += sum(one.pixels_3HW is not None for one in read)
                of_content.update({one.entry.digest: one for one in made.values()})
                of_content.pop("", None)  # what could not be read has no content to know it by
                bar.update(len(batch))
            store.add(made)
            known.update(made)
    known = {file.name: known[file.name] for file in listing.files if file.name in known}
    if todo or dropped or store.in_pieces:
        store.merge(known)
    good = sum(one.feature is not None for one in known.values())
    seconds = time.perf_counter() - began
    return known, Update(kept, good - kept - encoded, encoded, dropped, seconds)


def _runs(files: list[PictureFile], size: int) -> Iterator[list[PictureFile]]:
    waiting = iter(files)
    while run := list(islice(waiting, size)):
        yield run


def _read_all(clip: Any, files: list[PictureFile], of_content: Mapping[str, Known]) -> list[_Read]:
    """Each file as it is now, without those that have vanished; on threads, as Pillow allows it."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(lambda file: _read(clip, file, of_content), files)
        return [one for one in read if one is not None]


@torch.no_grad()
def _encoded(clip: Any, read: list[_Read]) -> dict[str, Known]:
    """What is known of each file; features are normalised."""
    pixels = [one.pixels_3HW for one in read if one.pixels_3HW is not None]
    features = iter(())
    if pixels:
        with evaluating(clip.model):
            features_BD = clip.encode_image(torch.stack(pixels)).float().cpu()
        check_finite(features_BD, "pictures", clip.name)
        features = iter(F.normalize(features_BD, dim=-1).numpy())
    return {
        one.name: Known(one.entry, one.feature if one.pixels_3HW is None else next(features))
        for one in read
    }


def _read(clip: Any, file: PictureFile, of_content: Mapping[str, Known]) -> _Read | None:
    entry = Entry(file.size, file.changed, time.time_ns(), "", "")
    try:
        content = file.path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # perhaps only now, so it is tried again the next time
        return _Read(file.name, replace(entry, read=0, defect=f"cannot be read: {error.strerror}"))
    entry = replace(entry, digest=hashlib.sha256(content).hexdigest())
    if twin := of_content.get(entry.digest):
        return _Read(file.name, replace(entry, defect=twin.entry.defect), twin.feature)
    try:
        picture = decode_image(content)
    except ImageError as error:
        return _Read(file.name, replace(entry, defect=str(error)))
    return _Read(file.name, entry, pixels_3HW=clip.preprocess(picture))
