"""`write_shards`: a data set as tars that webdataset, and any tar, can read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from longclip_lab.data.shards.format import (
    FORMAT,
    FRAME,
    MANIFEST,
    Broken,
    Manifest,
    PairRows,
    Sample,
    Sidecar,
    checksum,
    read_manifest,
    read_sidecar,
    whole_manifest,
)
from longclip_lab.data.shards.read import NAMED, NO_CAPTION, ShardSet, open_shards
from longclip_lab.data.validation import Defects, summarize
from longclip_lab.errors import COUNT, WORKERS, LabError
from longclip_lab.files import atomic_path, atomic_write, leftovers, visible
from longclip_lab.text import get_tokenizer

PER_SHARD = 2000
_OURS = re.compile(r"manifest\.json|shard-\d{6,}\.(tar|json)")
_UNFINISHED = re.compile(rf"\.({_OURS.pattern})\..*\.part")
_WORK: _Work
"""What a worker process writes shards of."""


def write_shards(
    data: Any,
    folder: str | Path,
    per_shard: int = PER_SHARD,
    skip_bad: bool = False,
    tokenizer: str = "clip",
    workers: int = 0,
    progress: bool = False,
) -> ShardSet:
    """Write `data` (`Pairs`, pairs of the world, or shards) as webdataset tars, and open them.

    A shard holds the next `per_shard` pairs: the picture file's own bytes (PNG for drawn pictures)
    and KEY.json with short, long, captions, captioners and the picture's name. The same data give
    the same bytes. Tokens are counted by `tokenizer` (`text.get_tokenizer`). `workers` processes
    write a shard each; 0 writes them in this one.

    An interrupted call is gone on with by the same call: whole shards are kept if their checksum
    holds. Every picture is decoded once. One that is broken or missing and a text that is empty
    raise a LabError that counts and names those of the shard; with `skip_bad` they are left out,
    counted and named in the manifest. Raises LabError as well if the folder holds anything else, or
    shards of other data.
    """
    COUNT.check("The number of pairs in a shard", per_shard)
    WORKERS.check("The number of workers", workers)
    folder = Path(folder)
    start = _claim(folder, _first_manifest(data, per_shard, tokenizer))
    work = _Work(data, folder, per_shard, skip_bad, tokenizer)
    made = _made(work, workers)
    sidecars = list(tqdm(made, "shards", work.shards, disable=not progress))
    names = [work.path(number).name for number in range(work.shards)]
    manifest = whole_manifest(start, names, sidecars)
    if not manifest.pairs:
        raise LabError(f"{data.name} leaves no pair to write. {summarize(manifest.skipped)}.")
    atomic_write(folder / MANIFEST, manifest.to_json())
    return open_shards(folder)


@dataclass
class _Work:
    """Writing one shard of many."""

    data: Any
    folder: Path
    per_shard: int
    skip_bad: bool
    tokenizer: str
    rows: Callable[[int, int], Iterator[Sample | Broken]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.data.rows if isinstance(self.data, ShardSet) else PairRows(self.data).rows

    @property
    def shards(self) -> int:
        return -(-len(self.data) // self.per_shard)

    def path(self, number: int) -> Path:
        """Where a shard goes."""
        return self.folder / f"shard-{number:06d}.tar"

    def write(self, number: int) -> Sidecar:
        """A shard's tar, and then its sidecar, unless both are there."""
        path = self.path(number)
        if (found := _whole(path)) is not None:
            return found
        first = number * self.per_shard
        last = min(first + self.per_shard, len(self.data))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            hashed = _Hashed(file)
            sidecar = self._fill(hashed, first, last)
        sidecar = Sidecar(**{**vars(sidecar), "sha256": hashed.digest, "bytes": hashed.size})
        atomic_write(path.with_suffix(".json"), sidecar.to_json())
        return sidecar

    def _fill(self, file: _Hashed, first: int, last: int) -> Sidecar:
        # Importing webdataset imports torch, which whoever reads only manifests need not wait for.
        from webdataset import TarWriter

        count = get_tokenizer(self.tokenizer)
        sidecar = Sidecar("", 0, [], [], [], [], [], {}, {})
        captioners: Counter[str] = Counter()
        defects: Defects = {}
        with TarWriter(file, encoder=False, mtime=0) as tar:
            for number, row in enumerate(self.rows(first, last), first):
                if isinstance(row, Broken):
                    defects.setdefault(row.reason, []).append(str(row))
                    continue
                members, key = row.members(), f"{number:09d}"
                sidecar.offsets.append(tar.tarstream.offset)
                tar.write({"__key__": key, **members})
                sidecar.keys.append(key)
                sidecar.checksums.append(checksum(members))
                sidecar.long_tokens.append(len(count.encode(row.texts.long)) + FRAME)
                sidecar.short_tokens.append(len(count.encode(row.texts.short)) + FRAME)
                captioners.update(row.texts.captioners.keys())
        asked = {reason: names for reason, names in defects.items() if reason != NO_CAPTION}
        if asked and not self.skip_bad:
            raise LabError(
                f"Pairs {first} to {last - 1} of {self.data.name}: {summarize(asked)}. Repair "
                "them, or leave them out, counted and named, with skip_bad=True (--skip-bad); what "
                "is written is kept."
            )
        return Sidecar(**{**vars(sidecar), "captioners": dict(captioners), "skipped": defects})


def _made(work: _Work, workers: int) -> Iterator[Sidecar]:
    """Every shard's sidecar, in order."""
    if workers == 0:
        yield from map(work.write, range(work.shards))
        return
    with ProcessPoolExecutor(workers, initializer=_take, initargs=(work,)) as pool:
        try:
            yield from pool.map(_write, range(work.shards))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _take(work: _Work) -> None:
    # Once a process: a large set's texts are not sent with every shard.
    global _WORK
    _WORK = work


def _write(number: int) -> Sidecar:
    return _WORK.write(number)


class _Hashed:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self._hash = file, 0, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Write on."""
        self._hash.update(content)
        self.size += len(content)
        return self.file.write(content)

    @property
    def digest(self) -> str:
        """In hexadecimal."""
        return self._hash.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(2**20):
            whole.update(content)
    return whole.hexdigest()


def _first_manifest(data: Any, per_shard: int, tokenizer: str) -> Manifest:
    get_tokenizer(tokenizer)  # complains of an unknown one
    drawn = isinstance(getattr(data, "images", None), np.ndarray)
    pictures = data.pictures if isinstance(data, ShardSet) else ("values" if drawn else "files")
    identity = {"data": data.source, "per_shard": per_shard, "tokenizer": tokenizer}
    identity = json.loads(json.dumps(identity))
    name = data.name.removeprefix(NAMED)
    return Manifest(FORMAT, False, name, identity, pictures, skipped=dict(data.skipped))


def _claim(folder: Path, wanted: Manifest) -> Manifest:
    """Make the folder the place of these shards, or find that it already is."""
    if folder.exists() and not folder.is_dir():
        raise LabError(f"{folder} is a file; shards need a folder.")
    path = folder / MANIFEST
    entries = visible(folder) if folder.is_dir() else []
    for entry in leftovers(folder) if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(entry.name):
            entry.unlink()  # of a call that was killed
    for entry in entries:
        if not _OURS.fullmatch(entry.name):
            raise LabError(f"{folder} holds something else ({entry.name}); give another folder.")
    if not path.exists():
        if any(_OURS.fullmatch(entry.name) for entry in entries):
            raise LabError(f"{folder} holds shards and no {MANIFEST}; give another folder.")
        atomic_write(path, wanted.to_json())
        return wanted
    found = read_manifest(path.read_bytes(), str(path))
    for what, now in wanted.identity.items():
        before = found.identity.get(what)
        if before != now:
            raise LabError(
                f"{folder} holds shards made otherwise ({what}: {_brief(before)} there, "
                f"{_brief(now)} now); give another folder, or repeat that command to go on."
            )
    return wanted


def _whole(path: Path) -> Sidecar | None:
    """The sidecar of a shard that is there and as it was written."""
    beside = path.with_suffix(".json")
    if not path.exists() or not beside.exists():
        return None
    try:
        sidecar = read_sidecar(beside.read_bytes(), str(beside))
    except LabError:
        return None
    fits = path.stat().st_size == sidecar.bytes and sha256_of(path) == sidecar.sha256
    return sidecar if fits else None


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}.."
