"""Features of a folder's images, kept between calls and brought up to date.

`all.safetensors` holds what the last finished call left; every run of pictures after it is a block
of its own, written in one step. A call that is killed leaves whole blocks for the next one.

R rows of a block's features (its entries but for broken pictures), B batch, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import uuid
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.evaluation.records import model_hash
from longclip_lab.files import atomic_path, checked_fields, json_hash, parse_json, to_json
from longclip_lab.images import READING, ImageError, ImageFile, Listing, decode_image
from longclip_lab.models.encoding import check_finite, evaluating

# --- Features of pictures, kept between calls: CACHE/FOLDER/TOWER/*.safetensors ---

FORMAT = "longclip-lab-search-1"
WHOLE, BLOCKS = "all.safetensors", "block-*.safetensors"
_UNUSABLE = (LabError, SafetensorError, OSError, ValueError, LookupError, TypeError)
COARSEST_CLOCK = 2_000_000_000
"""Nanoseconds; some file systems tell times to two seconds only."""


@dataclass(frozen=True)
class Entry:
    """What is known of a picture file: its size and time of change when it was read, when that was
    (nanoseconds), the SHA-256 of its content, what is wrong with it ("" for a good picture), and
    its normalised feature [D], None for a broken picture."""

    size: int
    changed: int
    read: int
    digest: str = ""
    defect: str = ""
    feature: Any = None

    def trusted(self, file: ImageFile) -> bool:
        """Whether the file is surely as it was.

        Size and time must agree, and the file must have been left alone for a while before it was
        read: a change in the same tick of the clock would not show.
        """
        same = (file.size, file.changed) == (self.size, self.changed)
        return same and self.read - self.changed > COARSEST_CLOCK


def cache_folder() -> Path:
    """Where features are kept unless another place is given: the user's own cache folder.

    `LONGCLIP_LAB_CACHE`, or else what the system calls the user's cache (`XDG_CACHE_HOME` or
    ~/.cache; ~/Library/Caches on macOS; %LOCALAPPDATA% on Windows), and "longclip-lab" in it.
    """
    if chosen := os.environ.get("LONGCLIP_LAB_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "longclip-lab"


def tower_identity(clip: Any) -> dict[str, Any]:
    """What decides a picture's feature: the image tower's weights, the preprocessing, how
    images are read, this format.

    A stretched or otherwise changed text tower leaves it as it is, so such models share features.
    Of a model that is not open_clip's all weights count.
    """
    model = clip.model
    tower = model.visual if isinstance(model, CLIP | CustomTextCLIP) else model
    facts = {
        "format": FORMAT,
        "tower": model_hash(tower),
        "images": READING,
        "embedding": clip.embed_dim,
        "preprocess": clip.card.get("preprocess") or repr(clip.preprocess),
    }
    return json.loads(json.dumps(facts))


class FeatureStore:
    """The features of one image tower for the pictures of one folder."""

    def __init__(self, cache: Path, pictures: Path, identity: Mapping[str, Any]):
        if cache.exists() and not cache.is_dir():
            raise LabError(f"{cache} is a file; the cache needs a folder.")
        where = str(pictures.resolve())
        named = re.sub(r"[^\w-]+", "_", pictures.resolve().name)[:40] or "root"
        self.identity = dict(identity)
        self.folder = (
            cache / f"{named}-{json_hash(where, 12)}" / f"tower-{json_hash(self.identity, 12)}"
        )
        self._own: list[Path] = []

    def load(self) -> dict[str, Entry]:
        """Everything that is stored, by the pictures' names; a later block outdoes an earlier one.

        What cannot be read, or is of another model, is left out with a LabWarning and made again.
        """
        blocks = sorted(self.folder.glob(BLOCKS), key=lambda path: path.name)
        found: dict[str, Entry] = {}
        for path in [self.folder / WHOLE, *blocks]:
            try:
                found.update(self._read(path))
            except FileNotFoundError:  # none yet, or another call has just merged it
                continue
            except _UNUSABLE as error:
                message = f"{path} cannot be used ({error}); its pictures are encoded again."
                warnings.warn(message, LabWarning, stacklevel=2)
            self._own.append(path)
        return found

    def add(self, known: Mapping[str, Entry]) -> None:
        """Write a block."""
        path = self.folder / f"block-{uuid.uuid4().hex}.safetensors"
        self._write(path, known)
        self._own.append(path)

    def merge(self, known: Mapping[str, Entry]) -> None:
        """Write all that is to stay into one file, then remove the blocks that it replaces."""
        self._write(self.folder / WHOLE, known)
        for path in self._own:
            if path.name != WHOLE:
                path.unlink(missing_ok=True)
        self._own = [self.folder / WHOLE]

    @property
    def in_pieces(self) -> bool:
        """Whether an earlier call left blocks that are not merged."""
        return any(path.name != WHOLE for path in self._own)

    def _read(self, path: Path) -> dict[str, Entry]:
        if not path.exists():
            raise FileNotFoundError(path)
        with safe_open(path, framework="numpy") as block:
            facts = block.metadata() or {}
            identity = parse_json(facts.get("identity", "null"), "its identity")
            if identity != self.identity:
                raise ValueError("it holds features of another model or preprocessing")
            tensors = {name: block.get_tensor(name) for name in ("features", "entries")}
        features_RD = tensors["features"]
        if not np.isfinite(features_RD).all():
            raise ValueError("it holds features that are no finite numbers")
        if facts.get("checksum") != _checksum(tensors):
            raise ValueError("its bytes have changed since it was written")
        rows = parse_json(tensors["entries"].tobytes(), "its list of pictures")
        entries = {name: checked_fields(Entry(*facts), f"{name}") for name, *facts in rows}
        good = [name for name, entry in entries.items() if not entry.defect]
        if features_RD.shape != (len(good), self.identity["embedding"]):
            raise ValueError(f"{len(good)} pictures, features of shape {features_RD.shape}")
        for name, feature_D in zip(good, features_RD, strict=True):
            entries[name] = replace(entries[name], feature=feature_D)
        return entries

    def _write(self, path: Path, known: Mapping[str, Entry]) -> None:
        features = [one.feature for one in known.values() if one.feature is not None]
        rows = [
            (name, one.size, one.changed, one.read, one.digest, one.defect)
            for name, one in known.items()
        ]
        tensors = {
            "features": np.reshape(features, (-1, self.identity["embedding"])).astype(np.float32),
            "entries": np.frombuffer(to_json(rows).encode(), np.uint8),
        }
        facts = {"identity": to_json(self.identity), "checksum": _checksum(tensors)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, facts)


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """CRC-32 over types and bytes: a feature of which a bit has turned looks like any other."""
    whole = 0
    for name, values in sorted(tensors.items()):
        whole = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), whole)
        whole = zlib.crc32(np.ascontiguousarray(values), whole)
    return f"{whole:08x}"


# --- Bring the stored features of a folder up to date: only what is new or changed is ---

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


def bring_up_to_date(
    clip: Any,
    listing: Listing,
    store: FeatureStore,
    verify: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[dict[str, Entry], Update]:
    """What is known of every file of `listing`, in its order, and what was done for it.

    With `verify` the content of every file is read and compared, whatever its size and time say.
    Files that vanish while this runs are left out.
    """
    began = time.perf_counter()
    stored = store.load()
    dropped = len(stored.keys() - {file.name for file in listing.files})
    known = {} if verify else {
        file.name: stored[file.name]
        for file in listing.files
        if file.name in stored and stored[file.name].trusted(file)
    }  # fmt: skip
    kept, encoded = sum(one.feature is not None for one in known.values()), 0
    of_content = {one.digest: one for one in stored.values() if one.digest}
    todo = [file for file in listing.files if file.name not in known]
    reads = partial(_read, clip, of_content)
    with (
        tqdm(total=len(todo), unit="picture", disable=not (progress and todo)) as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,  # Pillow decodes beside others
    ):
        for start in range(0, len(todo), RUN):
            made: dict[str, Entry] = {}
            run = todo[start : start + RUN]
            for first in range(0, len(run), batch_size):
                batch = run[first : first + batch_size]
                files = zip(batch, pool.map(reads, batch), strict=True)
                now = {file.name: one for file, one in files if one is not None}
                new = [name for name, one in now.items() if isinstance(one.feature, torch.Tensor)]
                if new:
                    features_BD = _encoded(clip, torch.stack([now[name].feature for name in new]))
                    for name, feature_D in zip(new, features_BD, strict=True):
                        now[name] = replace(now[name], feature=feature_D)
                made |= now
                encoded += len(new)
                # What could not be read has no content to know it by.
                of_content |= {one.digest: one for one in now.values() if one.digest}
                bar.update(len(batch))
            store.add(made)
            known |= made
    known = {file.name: known[file.name] for file in listing.files if file.name in known}
    if todo or dropped or store.in_pieces:
        store.merge(known)
    good = sum(one.feature is not None for one in known.values())
    seconds = time.perf_counter() - began
    return known, Update(kept, good - kept - encoded, encoded, dropped, seconds)


@torch.no_grad()
def _encoded(clip: Any, pixels_B3HW: torch.Tensor) -> np.ndarray:
    with evaluating(clip.model):
        features_BD = clip.encode_image(pixels_B3HW).float().cpu()
    check_finite(features_BD, "pictures", clip.name)
    return F.normalize(features_BD, dim=-1).numpy()


def _read(clip: Any, of_content: Mapping[str, Entry], file: ImageFile) -> Entry | None:
    """A file as it is now, with its pixels [3, H, W] for a feature if its content is new; None for
    one that has vanished."""
    entry = Entry(file.size, file.changed, time.time_ns())
    try:
        content = file.path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # perhaps only now, so it is tried again the next time
        return replace(entry, read=0, defect=f"cannot be read: {error.strerror}")
    entry = replace(entry, digest=hashlib.sha256(content).hexdigest())
    if twin := of_content.get(entry.digest):
        return replace(entry, defect=twin.defect, feature=twin.feature)
    try:
        return replace(entry, feature=clip.preprocess(decode_image(content)))
    except ImageError as error:
        return replace(entry, defect=str(error))
