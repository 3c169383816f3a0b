"""`ShardSet`: shards as one data set, each a stream of pairs."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from longclip_lab.data.known_words import NOTHING_KNOWN, known_part
from longclip_lab.data.shards.manifest import Sidecar, read_sidecar
from longclip_lab.data.shards.places import Stream, content_of
from longclip_lab.data.shards.samples import (
    BROKEN,
    Broken,
    PairTexts,
    Sample,
    checksum,
)
from longclip_lab.errors import LabError

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
