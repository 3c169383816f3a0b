"""`open_shards` and `check_shards`: shards as one data set, streamed."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from longclip_lab.data.pairs import NOTHING_KNOWN, known_part
from longclip_lab.data.shards.format import (
    BROKEN,
    MANIFEST,
    Broken,
    Manifest,
    PairTexts,
    Sample,
    Sidecar,
    Stream,
    checksum,
    content_of,
    folders_below,
    joined,
    read_manifest,
    read_sidecar,
    token_facts,
)
from longclip_lab.errors import LabError
from longclip_lab.images import ImageError, decode_image

# --- `ShardSet`: shards as one data set, each a stream of pairs ---

NO_CAPTION = "no new caption"
_READ_AT_ONCE = 2**16
"""tarfile copies what it has read ahead with every file: of a megabyte that takes half the time."""
_SIDECARS = 64


@dataclass(frozen=True)
class Shard:
    """One tar: its address, its name below the set's, and what the manifest says of it."""

    url: str
    name: str
    pairs: int
    bytes: int
    sha256: str

    @property
    def folder(self) -> str:
        """Where the names of its pairs begin; empty unless several sets were joined."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class ShardSet:
    """N pairs in shards, read as streams; only what is asked for is read at all.

    `source` says where the pairs come from and holds their hash; `skipped` names what was left out
    when they were written, by reason; `pictures` are "files" or a drawn world's "values". `tokens`
    and `captioners` are the manifest's counts. A pair's number counts through all shards.
    """

    name: str
    shards: tuple[Shard, ...]
    source: dict[str, Any]
    skipped: dict[str, list[str]]
    pictures: str
    tokens: dict[str, Any]
    captioners: dict[str, int]
    added: Mapping[str, Mapping[str, str]] | None = None
    words: frozenset[str] | None = None
    _sidecars: dict[int, Sidecar] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def counts(self) -> np.ndarray:
        """Pairs of each shard."""
        return np.array([shard.pairs for shard in self.shards], dtype=np.int64)

    @property
    def firsts(self) -> np.ndarray:
        """The number of each shard's first pair, and N."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair's long text [N], start and end included. Reads every sidecar."""
        parts = [self.sidecar(number).long_tokens for number in range(len(self.shards))]
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])

    def sidecar(self, number: int) -> Sidecar:
        """Keys, checksums and token lengths of a shard.

        Raises LabError if it is missing or of another tar than the manifest's.
        """
        if number not in self._sidecars:
            shard = self.shards[number]
            url = f"{shard.url.removesuffix('.tar')}.json"
            content = content_of(url)
            if content is None:
                raise LabError(f"There is no {url}. Copy the shards with everything beside them.")
            sidecar = read_sidecar(content, url)
            if sidecar.sha256 != shard.sha256 or len(sidecar.keys) != shard.pairs:
                raise LabError(f"{url} and the manifest speak of different shards.")
            while len(self._sidecars) >= _SIDECARS:
                del self._sidecars[next(iter(self._sidecars))]
            self._sidecars[number] = sidecar
        return self._sidecars[number]

    def pair_name(self, number: int) -> str:
        """What a pair is called in records: shard-000003.tar/000006017."""
        at = int(np.searchsorted(self.firsts, number, side="right")) - 1
        return f"{self.shards[at].name}/{self.sidecar(at).keys[number - self.firsts[at]]}"

    def samples(self, number: int, start: int = 0) -> Iterator[Sample | Broken]:
        """The pairs of a shard from the one at `start` on: one for each key of its sidecar.

        The tar is read once, from that pair to its end. Of a damaged one everything is used that
        can be read; every pair that cannot comes as `Broken`.
        """
        shard, sidecar = self.shards[number], self.sidecar(number)
        # Importing webdataset imports torch, which whoever reads only manifests need not wait for.
        from webdataset.tariterators import group_by_keys

        places = {key: place for place, key in enumerate(sidecar.keys)}
        stream = Stream(shard.url, sidecar.offsets[start] if start < shard.pairs else 0)
        place = start
        try:
            files = _members(stream, places, start)
            for group in group_by_keys(files, handler=lambda error: True):
                found = places[group["__key__"]]
                if found < place:  # a second time; not by our writer
                    continue
                yield from (self._lost(number, missing) for missing in range(place, found))
                yield self._sample(number, found, group)
                place = found + 1
        finally:
            stream.close()
        yield from (self._lost(number, missing) for missing in range(place, shard.pairs))

    def rows(self, start: int, stop: int) -> Iterator[Sample | Broken]:
        """The pairs from number `start` to `stop`, for writing them anew."""
        firsts = self.firsts
        while start < stop:
            at = int(np.searchsorted(firsts, start, side="right")) - 1
            until = min(stop, int(firsts[at + 1]))
            samples = self.samples(at, start - int(firsts[at]))
            yield from (next(samples) for _ in range(start, until))
            samples.close()
            start = until

    def with_captions(self, captions: Mapping[str, Mapping[str, str]], facts: Any) -> ShardSet:
        """The same pairs with more long captions, {key: {captioner: caption}}, as `captioners`.

        `long` becomes the first of a pair's new ones. Pairs without any are named as left out when
        they are read. `facts` is what `source` says of the captions.
        """
        captions = {
            key: {who: text for who, text in by.items() if text.strip()}
            for key, by in captions.items()
        }
        counted = Counter(who for by in captions.values() for who in by)
        captioners = {**self.captioners, **counted}
        source = {**self.source, "recaptioned": facts}
        return replace(self, added=captions, captioners=captioners, source=source)

    def known_to(self, words: Sequence[str]) -> ShardSet:
        """The same pairs with only these words in their texts (`data.keep_known_words`)."""
        if self.pictures == "values":  # the drawn world's texts have no others
            return self
        source = {**self.source, "words": {"known": len(set(words))}}
        return replace(self, words=frozenset(words), source=source)

    def pair_key(self, number: int, key: str) -> str:
        """A pair's key among all shards: joined sets have the set's name in front."""
        folder = self.shards[number].folder
        return f"{folder}/{key}" if folder else key

    def _lost(self, number: int, place: int) -> Broken:
        key = self.sidecar(number).keys[place]
        return Broken(f"{self.shards[number].name}/{key}", BROKEN, "not to be found in the tar")

    def _sample(self, number: int, place: int, group: dict[str, Any]) -> Sample | Broken:
        shard, sidecar = self.shards[number], self.sidecar(number)
        key = sidecar.keys[place]
        name = f"{shard.name}/{key}"
        members = {suffix: part for suffix, part in group.items() if not suffix.startswith("__")}
        kind = next((suffix for suffix in members if suffix != "json"), None)
        if kind is None:
            return Broken(name, BROKEN, "its picture is missing")
        if "json" not in members:
            return Broken(name, BROKEN, "its texts are missing")
        if checksum(members) != sidecar.checksums[place]:
            return Broken(name, BROKEN, "its bytes have changed (checksum)")
        texts = PairTexts.from_json(members["json"])
        if isinstance(texts, str):
            return Broken(name, BROKEN, texts)
        key = self.pair_key(number, key)
        if self.added is not None:
            new = self.added.get(key)
            if not new:
                return Broken(name, NO_CAPTION)
            captioners = {**texts.captioners, **new}
            texts = replace(texts, long=next(iter(new.values())), captioners=captioners)
        return Sample(key, members[kind], kind, self._readable(texts))

    def _readable(self, texts: PairTexts) -> PairTexts:
        if self.words is None:
            return texts

        def known(text: str) -> str:
            return known_part(text, self.words)[0] or NOTHING_KNOWN

        return replace(
            texts,
            short=known(texts.short),
            long=known(texts.long),
            captions=[known(text) for text in texts.captions],
            captioners={who: known(text) for who, text in texts.captioners.items()},
        )


def _members(stream: Stream, places: Mapping[str, int], start: int) -> Iterator[dict[str, Any]]:
    """The files of the pairs from `start` on, as webdataset hands them to `group_by_keys`.

    A header that is damaged is skipped until the next good one (`ignore_zeros`); whoever reads
    counts what did not come.
    """
    from webdataset.tariterators import base_plus_ext

    try:
        # Closed with the stream: closing it here would read what is left.
        tar = tarfile.open(  # noqa: SIM115
            fileobj=stream, mode="r|", ignore_zeros=True, bufsize=_READ_AT_ONCE
        )
        for info in tar:
            tar.members = []
            key, _ = base_plus_ext(info.name)
            place = places.get(key)
            if place is None or place < start or not info.isreg():
                continue
            file = tar.extractfile(info)
            yield {"fname": info.name, "data": file.read(), "__url__": stream.url}
    except (tarfile.TarError, EOFError):
        return


# --- `open_shards`: a folder of shards anywhere, or several, as one `ShardSet` ---

NAMED = "shards of "
"""What the name of a set begins with."""


def open_shards(url: str | Path) -> ShardSet:
    """The shards in a folder, given by its path or address (s3://, gs://, http://, memory://, ..).

    A folder that holds only folders of shards is all of them joined, in the order of their names.
    Reads the manifests and nothing else. Raises LabError if there are no shards, or if writing them
    was not finished.
    """
    url = str(url)
    content = content_of(joined(url, MANIFEST))
    if content is not None:
        return _shard_set(url, "", read_manifest(content, joined(url, MANIFEST)))
    parts = []
    for folder in folders_below(url):
        where = joined(joined(url, folder), MANIFEST)
        if (content := content_of(where)) is not None:
            parts.append(_shard_set(joined(url, folder), folder, read_manifest(content, where)))
    if not parts:
        raise LabError(
            f"{url} holds no {MANIFEST}, nor does a folder in it. Give a folder that "
            "`longclip-lab data shard` wrote."
        )
    return _joined_sets(parts)


def _shard_set(url: str, folder: str, manifest: Manifest) -> ShardSet:
    if not manifest.finished:
        raise LabError(
            f"The shards in {url} are not all written; the same `longclip-lab data shard` goes on."
        )
    front = f"{folder}/" if folder else ""
    shards = tuple(
        Shard(joined(url, one.name), front + one.name, one.pairs, one.bytes, one.sha256)
        for one in manifest.shards
    )
    source = {
        "dataset": "shards",
        "of": manifest.identity["data"],
        "pairs": manifest.pairs,
        "hash": manifest.hash,
    }
    return ShardSet(
        name=f"{NAMED}{manifest.name}",
        shards=shards,
        source=source,
        skipped=manifest.skipped or {},
        pictures=manifest.pictures,
        tokens=manifest.tokens or {},
        captioners=manifest.captioners or {},
    )


def _joined_sets(parts: Sequence[ShardSet]) -> ShardSet:
    if len({part.pictures for part in parts}) > 1:
        raise LabError("Shards of picture files and of a drawn world cannot be joined.")
    tokenizers = {part.tokens["tokenizer"] for part in parts}
    if len(tokenizers) > 1:
        raise LabError(
            f"The sets' tokens were counted by {' and '.join(sorted(tokenizers))}; write them with "
            "one --tokenizer to join them."
        )
    captioners: Counter[str] = Counter()
    skipped: dict[str, list[str]] = {}
    for part in parts:
        folder = part.shards[0].folder
        captioners.update(part.captioners)
        for reason, names in part.skipped.items():
            skipped.setdefault(reason, []).extend(f"{folder}/{name}" for name in names)
    tokens: dict[str, Any] = {"tokenizer": tokenizers.pop()}
    for which in ("long", "short"):
        texts: Counter[int] = Counter()
        for part in parts:
            counted = part.tokens[which]["texts_by_length"].items()
            texts.update({int(length): count for length, count in counted})
        tokens[which] = token_facts(texts)
    return ShardSet(
        name=NAMED + " + ".join(part.name.removeprefix(NAMED) for part in parts),
        shards=tuple(shard for part in parts for shard in part.shards),
        source={
            "dataset": "shards",
            "of": [part.source["of"] for part in parts],
            "pairs": sum(map(len, parts)),
            "hash": [part.source["hash"] for part in parts],
        },
        skipped=skipped,
        pictures=parts[0].pictures,
        tokens=tokens,
        captioners=dict(captioners),
    )


# --- `check_shards`: is every byte as it was written, and does every pair decode? ---

_AT_ONCE = 2**20


@dataclass
class ShardCheck:
    """What a look at every shard found: `shards` and `pairs` that are broken, by name, and why."""

    name: str
    num_shards: int
    num_pairs: int
    shards: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.shards and not self.pairs

    def __str__(self) -> str:
        """For a terminal."""
        lines = [f"{self.name}: {self.num_pairs} pairs in {self.num_shards} shards"]
        if self.ok:
            return f"{lines[0]}; every checksum holds and every pair decodes"
        lines += [f"  {name}: {why}" for name, why in [*self.shards.items(), *self.pairs.items()]]
        return "\n".join(lines)


def check_shards(url: str, progress: bool = False) -> ShardCheck:
    """Read every tar twice: against its SHA-256, and pair by pair.

    Raises LabError if there are no finished shards.
    """
    shards = open_shards(url)
    found = ShardCheck(shards.name, len(shards.shards), len(shards))
    for number, shard in enumerate(tqdm(shards.shards, "checking", disable=not progress)):
        try:
            if why := _changed(shard):
                found.shards[shard.name] = why
            for sample in shards.samples(number):
                if isinstance(sample, Broken):
                    found.pairs[sample.name] = sample.detail or sample.reason
                    continue
                try:
                    decode_image(sample.image, draft=True)
                except ImageError as error:
                    key = sample.key.rpartition("/")[2]
                    found.pairs[f"{shard.name}/{key}"] = str(error)
        except LabError as error:
            found.shards[shard.name] = str(error)
    return found


def _changed(shard: Shard) -> str:
    whole, size = hashlib.sha256(), 0
    stream = Stream(shard.url)
    try:
        while content := stream.read(_AT_ONCE):
            whole.update(content)
            size += len(content)
    finally:
        stream.close()
    if size != shard.bytes:
        return f"{size} bytes, expected {shard.bytes}"
    return "" if whole.hexdigest() == shard.sha256 else "its bytes have changed (SHA-256)"
