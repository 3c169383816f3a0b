"""What a shard holds, what is written beside it, and where shards lie.

Everything but http goes through fsspec, with the package that it names for a kind of bucket (s3fs,
gcsfs). A web server is read by one plain request a file: that needs neither another package nor the
many small requests of a file that can be read anywhere.

FOLDER/shard-000000.tar    pairs KEY.jpg (png, ..) and KEY.json
FOLDER/shard-000000.json   sidecar: SHA-256 of the tar; key, place, checksum, token lengths of pairs
FOLDER/manifest.json       where the pairs are from, what was left out, all shards, token statistics

A sidecar is written when its tar is whole, the manifest says "finished" when all of them are.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import numpy as np
from PIL import Image

from longclip_lab.constants import CONTEXTS
from longclip_lab.errors import LabError
from longclip_lab.files import checked_fields, json_kind, parse_json, readable, to_json
from longclip_lab.images import FORMATS, ImageError, decode_image, format_of

# --- Where shards lie: a folder, a bucket or a web server, read from front to back ---

ATTEMPTS = 4
PAUSE = 1.0
"""Seconds before a broken connection is taken up again; twice as many each time."""
BLOCK = 2**23
"""Bytes that are asked of a bucket at a time."""
TIMEOUT = 60.0
_BROKEN_OFF = (OSError, http.client.HTTPException, asyncio.TimeoutError)
_HOPELESS = (PermissionError, IsADirectoryError)


class MissingError(LabError):
    """There is no such file."""


class Stream:
    """A file that is read once, from byte `position` to its last.

    A connection that breaks off is taken up where it broke: what a network lost for a moment is no
    damage. Raises LabError if the file cannot be opened or does not come back.
    """

    def __init__(self, url: str, position: int = 0):
        self.url, self.position, self.size = url, position, None
        self.file: Any = None

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes; none at the end."""
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                if self.file is None:
                    self.file, self.size = _opened(self.url, self.position)
                content = self.file.read(count)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise MissingError(f"{self.url} cannot be read: {_said(error)}.") from None
            except _HOPELESS as error:
                raise LabError(f"{self.url} cannot be read: {_said(error)}.") from None
            except _BROKEN_OFF as error:
                problem = _said(error)
            else:
                self.position += len(content)
                if content or count == 0 or self.size is None or self.position >= self.size:
                    return content
                problem = f"it ended after {self.position} of {self.size} bytes"
            self.close()
        raise LabError(
            f"{self.url} cannot be read on, tried {ATTEMPTS} times: {problem}. A run goes on from "
            "its last checkpoint with resume=True (--resume)."
        )

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
            self.file = None


def joined(url: str, name: str) -> str:
    """The address of a file or folder below `url`."""
    return f"{url.rstrip('/')}/{name}"


def content_of(url: str) -> bytes | None:
    """A whole small file, or None if there is none. Raises LabError as `Stream` does."""
    stream, parts = Stream(url), []
    try:
        while part := stream.read():
            parts.append(part)
    except MissingError:
        return None
    finally:
        stream.close()
    return b"".join(parts)


def folders_below(url: str) -> list[str]:
    """The names of the folders in a folder, sorted; none where there is no listing (http)."""
    if _is_web(url):
        return []
    system, path = _system(url)
    if not system.isdir(path):
        return []
    entries = system.ls(path, detail=True)
    return sorted(
        Path(entry["name"].rstrip("/")).name for entry in entries if entry["type"] == "directory"
    )


def _opened(url: str, start: int) -> tuple[BinaryIO, int | None]:
    """The file from byte `start` on, and its whole size where that is said."""
    if not _is_web(url):
        system, path = _system(url)
        file = system.open(path, "rb", block_size=BLOCK)
        if start:
            try:
                file.seek(start)
            except (ValueError, OverflowError):  # a list beside the tar may say any number
                raise LabError(f"{url} cannot be read from byte {start:,} on.") from None
        return file, system.size(path)
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return io.BytesIO(), start  # the file has ended before
        if error.code in (404, 410):
            raise FileNotFoundError(str(error)) from None
        if error.code in (401, 403):
            raise PermissionError(str(error)) from None
        raise
    told = response.headers.get("Content-Length")
    if start and response.status != http.client.PARTIAL_CONTENT:
        # A server without ranges begins again.
        while start and (skipped := response.read(min(start, BLOCK))):
            start -= len(skipped)
        return response, None if told is None else int(told)
    return response, None if told is None else start + int(told)


def _system(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise LabError(f"{url} needs another package: {error}.") from None
    except ValueError as error:
        raise LabError(f"{url} is no address that fsspec knows: {error}.") from None


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


# --- What is written beside the tars, so that nobody has to read them to know what they hold ---

FORMAT = "longclip-lab-shards-1"
MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")
FRAME = 2
"""Start and end token."""

T = TypeVar("T")


@dataclass(frozen=True)
class Sidecar:
    """What one tar holds, pair by pair: `offsets` is the byte where it begins, `checksums` are
    CRC-32 (`samples.checksum`), token lengths count start and end. `skipped` names the pairs of its
    part of the data that were left out, by reason."""

    sha256: str
    bytes: int
    keys: list[str]
    offsets: list[int]
    checksums: list[int]
    long_tokens: list[int]
    short_tokens: list[int]
    captioners: dict[str, int]
    skipped: dict[str, list[str]]

    def to_json(self) -> str:
        """As it is written."""
        return to_json(asdict(self)) + "\n"


@dataclass(frozen=True)
class ShardFacts:
    """A shard as the manifest lists it."""

    name: str
    pairs: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    `identity` says what was to be written: data, pairs per shard, tokenizer. `pictures` are "files"
    or a drawn world's "values". `tokens` has for "long" and "short" how many texts have how many
    tokens, and their statistics. `hash` covers every byte of every shard.
    """

    format: str
    finished: bool
    name: str
    identity: dict[str, Any]
    pictures: str
    pairs: int = 0
    skipped: dict[str, list[str]] | None = None
    captioners: dict[str, int] | None = None
    tokens: dict[str, Any] | None = None
    hash: str = ""
    shards: list[ShardFacts] | None = None

    def to_json(self) -> str:
        """As it is written."""
        return to_json(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_sidecar(content: bytes, where: str) -> Sidecar:
    """Raises LabError if this is no sidecar."""
    sidecar = _read(Sidecar, parse_json(content, where), where)
    lists = ("offsets", "checksums", "long_tokens", "short_tokens")
    if any(len(getattr(sidecar, name)) != len(sidecar.keys) for name in lists):
        raise _unreadable(where, "its lists are of different lengths")
    return sidecar


def read_manifest(content: bytes, where: str) -> Manifest:
    """Raises LabError if this is no manifest, or one of another version of the format."""
    found = parse_json(content, where)
    told = found.get("format") if isinstance(found, dict) else None
    if isinstance(told, str) and told != FORMAT:
        raise LabError(
            f"{where} is of the format {told!r}; this version of the lab reads "
            f"{FORMAT!r}. Write the shards anew."
        )
    if isinstance(found, dict) and isinstance(found.get("shards"), list):
        found["shards"] = [_read(ShardFacts, shard, where) for shard in found["shards"]]
    manifest = _read(Manifest, found, where)
    for shard in manifest.shards or []:
        # Manifests are copied from elsewhere: their names must not reach other files.
        if not SHARD_NAME.fullmatch(shard.name):
            raise LabError(f"{where} names a shard {shard.name!r}; expected shard-000000.tar.")
    if manifest.finished and manifest.shards is None:
        raise _unreadable(where, "it is finished and lists no shards")
    if manifest.finished and not {"data", "tokenizer"} <= manifest.identity.keys():
        raise _unreadable(where, "it does not say what it is of")
    return manifest


def whole_manifest(start: Manifest, names: Sequence[str], sidecars: Sequence[Sidecar]) -> Manifest:
    """The manifest of a folder in which every shard is there; `start` is the one it began with."""
    skipped = {reason: list(found) for reason, found in (start.skipped or {}).items()}
    captioners: Counter[str] = Counter()
    for sidecar in sidecars:
        captioners.update(sidecar.captioners)
        for reason, found in sidecar.skipped.items():
            skipped.setdefault(reason, []).extend(found)
    shards = [
        ShardFacts(name, len(sidecar.keys), sidecar.bytes, sidecar.sha256)
        for name, sidecar in zip(names, sidecars, strict=True)
    ]
    tokenizer = start.identity["tokenizer"]
    long = Counter(length for sidecar in sidecars for length in sidecar.long_tokens)
    short = Counter(length for sidecar in sidecars for length in sidecar.short_tokens)
    return Manifest(
        **{
            **vars(start),
            "finished": True,
            "pairs": sum(shard.pairs for shard in shards),
            "skipped": skipped,
            "captioners": dict(sorted(captioners.items())),
            "tokens": {
                "tokenizer": tokenizer,
                "long": token_facts(long),
                "short": token_facts(short),
            },
            "hash": content_hash(shards),
            "shards": shards,
        }
    )


def content_hash(shards: Sequence[ShardFacts]) -> str:
    """SHA-256 over the names and hashes of shards, in order."""
    whole = hashlib.sha256("".join(f"{one.name} {one.sha256}\n" for one in shards).encode())
    return f"sha256:{whole.hexdigest()}"


def token_facts(texts_by_length: Mapping[int, int]) -> dict[str, Any]:
    """Statistics as `text.text_statistics` has them, from how many texts have how many tokens.

    Lengths count start and end, as a context does; the mean and the quantiles do not.

    >>> facts = token_facts({12: 3, 100: 1})
    >>> facts["tokens_per_text"], facts["share_longer_than_77"], facts["token_quantiles"]["50%"]
    (32.0, 0.25, 10.0)
    """
    lengths = np.array(sorted(texts_by_length), dtype=np.int64)
    counts = np.array([texts_by_length[length] for length in lengths], dtype=np.int64)
    lengths_N = np.repeat(lengths, counts) - FRAME
    levels = {"shortest": 0, "5%": 5, "50%": 50, "95%": 95, "longest": 100}
    return {
        "tokens_per_text": round(float(lengths_N.mean()), 4) if len(lengths_N) else 0.0,
        "token_quantiles": {
            name: float(np.percentile(lengths_N, level)) if len(lengths_N) else 0.0
            for name, level in levels.items()
        },
        **{
            f"share_longer_than_{context}": round(
                longer_than(texts_by_length, context) / max(1, len(lengths_N)), 6
            )
            for context in CONTEXTS
        },
        "texts_by_length": {str(length): int(n) for length, n in zip(lengths, counts, strict=True)},
    }


def longer_than(texts_by_length: Mapping[Any, int], context: int) -> int:
    """How many texts have more tokens than a context holds, start and end included."""
    return sum(count for length, count in texts_by_length.items() if int(length) > context)


def _read(cls: type[T], found: Any, where: str) -> T:
    if not isinstance(found, dict):
        raise _unreadable(where, f"it holds a JSON {json_kind(found)}")
    known = {field.name for field in fields(cls)}
    try:
        return checked_fields(cls(**{key: found[key] for key in found if key in known}), where)
    except (LabError, TypeError) as error:
        raise _unreadable(where, str(error).removeprefix(f"{where}: ").rstrip(".")) from None


def _unreadable(where: str, why: str) -> LabError:
    return LabError(
        f"{where} cannot be read as what `longclip-lab data shard` writes: {why}. Write the "
        "shards anew."
    )


# --- One pair as a shard holds it, and the pairs of any data set in that form ---

BROKEN, EMPTY, NO_TEXTS = "broken picture", "empty text", "texts of another form"


@dataclass(frozen=True)
class PairTexts:
    """What is said of a picture: `Pairs`' fields, of one pair; `name` is what it was called."""

    short: str
    long: str
    captions: list[str] = field(default_factory=list)
    captioners: dict[str, str] = field(default_factory=dict)
    name: str = ""

    def to_json(self) -> bytes:
        """The content of a shard's KEY.json."""
        facts = {"short": self.short, "long": self.long, "captions": self.captions}
        facts |= {"captioners": self.captioners, "name": self.name}
        return to_json(facts, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> PairTexts | str:
        """The texts in a KEY.json, or what is wrong with them."""
        try:
            texts = cls(**parse_json(content, "the texts"))
            said = [texts.short, texts.long, texts.name, *texts.captions]
            said += [*texts.captioners, *texts.captioners.values()]
        except (LabError, TypeError, AttributeError):
            return NO_TEXTS
        fits = isinstance(texts.captions, list) and all(isinstance(text, str) for text in said)
        return texts if fits else NO_TEXTS


@dataclass(frozen=True)
class Sample:
    """A pair: its picture as a file's bytes, what kind of file (jpg, png, ..), and its texts."""

    key: str
    image: bytes
    kind: str
    texts: PairTexts

    def members(self) -> dict[str, bytes]:
        """The files of a shard that hold it, by suffix."""
        return {self.kind: self.image, "json": self.texts.to_json()}


@dataclass(frozen=True)
class Broken:
    """A pair that cannot be used: which one, what kind of defect, and what exactly."""

    name: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


def checksum(members: Mapping[str, bytes]) -> int:
    """CRC-32 over the files of a sample in the order of their suffixes."""
    crc = 0
    for suffix in sorted(members):
        crc = zlib.crc32(members[suffix], crc)
    return crc


class PairRows:
    """The pairs of `Pairs` or of the world, each read and decoded once."""

    def __init__(self, data: Any):
        self.data = data
        self.is_drawn = isinstance(data.images, np.ndarray)
        self.captions = data.captions
        self.captioners = getattr(data, "captioners", None)
        if not self.is_drawn:
            folders = {os.path.dirname(os.path.abspath(path)) for path in data.images}
            self.home = os.path.commonpath(folders)

    def rows(self, start: int, stop: int) -> Iterator[Sample | Broken]:
        """The pairs from `start` to `stop`, in order; their keys are still empty."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            yield from pool.map(self.row, range(start, stop))

    def row(self, index: int) -> Sample | Broken:
        """One pair."""
        data = self.data
        texts = PairTexts(
            data.short[index],
            data.long[index],
            list(self.captions[index]),
            dict(self.captioners[index]) if self.captioners else {},
            self.name(index),
        )
        if not texts.short.strip() or not texts.long.strip():
            return Broken(texts.name, EMPTY)
        if self.is_drawn:
            return Sample("", _png(data.images[index]), "png", texts)
        return _from_file(Path(data.images[index]), texts)

    def name(self, index: int) -> str:
        """A picture's path below the folder that all of them share, or a drawn one's number."""
        if self.is_drawn:
            return f"{index:06d}"
        path = os.path.abspath(self.data.images[index])
        return readable(Path(os.path.relpath(path, self.home)).as_posix())


def _from_file(path: Path, texts: PairTexts) -> Sample | Broken:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Broken(texts.name, "missing picture")
    except OSError as error:
        return Broken(texts.name, BROKEN, f"cannot be read: {error.strerror}")
    try:
        decode_image(content, draft=True)
    except ImageError as error:
        return Broken(texts.name, BROKEN, str(error))
    # Whatever the file is called: readers go by the member's suffix.
    return Sample("", content, FORMATS[format_of(content)], texts)


def _png(values_HW3: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(values_HW3).save(file, format="PNG")
        return file.getvalue()
