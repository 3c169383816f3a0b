"""One pair as a shard holds it, and the pairs of any data set in that form."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longclip_lab.errors import LabError
from longclip_lab.files import parse_json, readable, to_json
from longclip_lab.images import FORMATS, ImageError, decode_image, format_of

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
