"""Features of pictures, kept between calls: CACHE/FOLDER/TOWER/*.safetensors.

`all.safetensors` holds what the last finished call left; every run of pictures after it is a block
of its own, written in one step. A call that is killed leaves whole blocks for the next one.

n entries of a block, R rows of features (entries that are no broken pictures), D embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from open_clip import CLIP, CustomTextCLIP
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.evaluation.records import model_hash
from longclip_lab.files import atomic_path, checked_fields, parse_json, to_json
from longclip_lab.images import READING, PictureFile

FORMAT = "longclip-lab-search-1"
WHOLE, BLOCKS = "all.safetensors", "block-*.safetensors"
_UNUSABLE = (LabError, SafetensorError, OSError, ValueError, LookupError, TypeError)
COARSEST_CLOCK = 2_000_000_000
"""Nanoseconds; some file systems tell times to two seconds only."""


@dataclass(frozen=True)
class Entry:
    """What is known of a picture file: its size and time of change when it was read, when that was
    (nanoseconds), the SHA-256 of its content, and what is wrong with it ("" for a good picture)."""

    size: int
    changed: int
    read: int
    digest: str
    defect: str

    def trusted(self, file: PictureFile) -> bool:
        """Whether the file is surely as it was.

        Size and time must agree, and the file must have been left alone for a while before it was
        read: a change in the same tick of the clock would not show.
        """
        same = (file.size, file.changed) == (self.size, self.changed)
        return same and self.read - self.changed > COARSEST_CLOCK


@dataclass(frozen=True)
class Known:
    """An entry with its feature [D], None for a broken picture."""

    entry: Entry
    feature: np.ndarray | None


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
        self.folder = cache / f"{named}-{_digest(where)}" / f"tower-{_digest(self.identity)}"
        self._own: list[Path] = []

    def load(self) -> dict[str, Known]:
        """Everything that is stored, by the pictures' names; a later block outdoes an earlier one.

        What cannot be read, or is of another model, is left out with a LabWarning and made again.
        """
        blocks = sorted(self.folder.glob(BLOCKS), key=lambda path: path.name)
        found: dict[str, Known] = {}
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

    def add(self, known: Mapping[str, Known]) -> None:
        """Write a block."""
        path = self.folder / f"block-{uuid.uuid4().hex}.safetensors"
        self._write(path, known)
        self._own.append(path)

    def merge(self, known: Mapping[str, Known]) -> None:
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

    def _read(self, path: Path) -> dict[str, Known]:
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
        feature_of = dict(zip(good, features_RD, strict=True))
        return {name: Known(entry, feature_of.get(name)) for name, entry in entries.items()}

    def _write(self, path: Path, known: Mapping[str, Known]) -> None:
        features = [one.feature for one in known.values() if one.feature is not None]
        rows = [(name, *astuple(one.entry)) for name, one in known.items()]
        tensors = {
            "features": _stacked(features, self.identity["embedding"]),
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


def _stacked(features: Sequence[np.ndarray], size: int) -> np.ndarray:
    return np.stack(features) if features else np.empty((0, size), np.float32)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
