"""`check_shards`: is every byte as it was written, and does every pair decode?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tqdm import tqdm

from longclip_lab.data.shards.opening import open_shards
from longclip_lab.data.shards.places import Stream
from longclip_lab.data.shards.reading import Shard, ShardSet
from longclip_lab.data.shards.samples import Broken
from longclip_lab.errors import LabError
from longclip_lab.images import ImageError, decode_image

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
            found.pairs.update(_broken_pairs(shards, number))
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


def _broken_pairs(shards: ShardSet, number: int) -> dict[str, str]:
    broken = {}
    for sample in shards.samples(number):
        if isinstance(sample, Broken):
            broken[sample.name] = sample.detail or sample.reason
            continue
        try:
            decode_image(sample.image, draft=True)
        except ImageError as error:
            place = shards.shards[number]
            broken[f"{place.name}/{sample.key.rpartition('/')[2]}"] = str(error)
    return broken
