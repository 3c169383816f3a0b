"""What is written beside the tars, so that nobody has to read them to know what they hold.

FOLDER/shard-000000.tar    pairs KEY.jpg (png, ..) and KEY.json
FOLDER/shard-000000.json   sidecar: SHA-256 of the tar; key, place, checksum, token lengths of pairs
FOLDER/manifest.json       where the pairs are from, what was left out, all shards, token statistics

A sidecar is written when its tar is whole, the manifest says "finished" when all of them are.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.files import checked_fields, json_kind, parse_json, to_json

FORMAT = "longclip-lab-shards-1"
MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")
CONTEXTS = (77, 128, 248)
"""CLIP's context, LoTLIP's and Long-CLIP's."""
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
