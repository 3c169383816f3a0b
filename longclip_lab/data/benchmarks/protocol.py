"""What a benchmark is, word by word, and what opening it gives.

A protocol says which pictures, which texts and how they are read; a benchmark is a protocol with
the pictures and texts themselves. Two scores can be compared if their protocols do not differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longclip_lab.data.benchmarks.prompts import class_names as named_classes
from longclip_lab.data.benchmarks.prompts import templates as named_templates
from longclip_lab.data.benchmarks.texts import PROCESSING

OWN_PREPROCESSING = "the model's own"

NOT_COMPARED = (
    *("name", "about", "users", "get", "licence", "layout", "needs", "picture_folders", "folders"),
    *("also_counted", "contaminated_by", "sources", "prompts", "classes"),
)
"""Fields that tell people about a protocol, or only name what others hold."""

OF_THE_READER = ("reader", "options")
"""Fields that say how files are read; what comes of it is in the others."""


@dataclass(frozen=True)
class Protocol:
    """Everything that decides a score on a benchmark, apart from the model."""

    name: str
    task: Literal["retrieval", "classification"]
    about: str
    """What is special about it, and what could not be confirmed."""
    images: str
    """Which pictures."""
    texts: str
    """Which texts."""
    num_images: int
    num_texts: int
    """Texts that are encoded; for classification, classes times templates."""
    texts_per_image: int | None = None
    """None where it varies, and for classification."""
    split: str = "test"
    text_field: str = "caption"
    """Where the text stands in the published files."""
    text_processing: str = "as written"
    """A name in `texts.PROCESSING`: what is done to a text before the tokenizer gets it."""
    tie: str = "pessimistic"
    """How equal scores are ranked. Official codes take the argmax, which gives the same score
    unless scores are equal to the last digit."""
    prompts: str = ""
    """Which templates, for classification: a name in `prompts.templates`."""
    classes: str = ""
    """Which class names: a name in `prompts.class_names`."""
    preprocess: str = OWN_PREPROCESSING
    users: tuple[str, ...] = ()
    """Papers and codes that report on it."""
    get: tuple[str, ...] = ()
    """Steps to download it."""
    licence: str = ""
    layout: str = ""
    """What lies in its folder, in words."""
    needs: tuple[tuple[str, ...], ...] = ()
    """Files or folders, below its folder, that list its pictures and hold its texts; each with the
    other names it is published under."""
    picture_folders: tuple[tuple[str, ...], ...] = ()
    """Folders of its pictures, likewise."""
    folders: tuple[str, ...] = ()
    """Names of its folder below a common root, the usual one first."""
    also_counted: tuple[int, ...] = ()
    """Other numbers of pictures that sources give for the same set."""
    contaminated_by: tuple[str, ...] = ()
    """Training sets that hold pictures of it, as `Pairs.source` calls dataset and split.
    "sharegpt4v" stands for the set and every part of it, "sharegpt4v/all" for the whole alone,
    not for "sharegpt4v/train", from which Long-CLIP's code holds the first 1,000 rows out."""
    sources: tuple[str, ...] = ()
    """Where these facts were read."""
    reader: str = field(default="", repr=False)
    """Which function of `readers.READERS` reads it."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """What that function is told."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompts with one "{}" for the class name; none for retrieval."""
        return named_templates(self.prompts)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels; a benchmark on disk may have only some of them."""
        return named_classes(self.classes)

    def process(self, text: str) -> str:
        """A published text as the tokenizer gets it."""
        return PROCESSING[self.text_processing](text)

    def facts(self) -> dict[str, Any]:
        """All of it, JSON-able; templates as a list, class names as number and hash."""
        told = [one.name for one in fields(self) if one.name not in OF_THE_READER]
        values = {name: getattr(self, name) for name in told}
        lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        names = "\n".join(self.class_names).encode()
        return lists | {
            "needs": [list(names) for names in self.needs],
            "picture_folders": [list(names) for names in self.picture_folders],
            "templates": list(self.templates),
            "class_names": {
                "count": len(self.class_names),
                "hash": hashlib.sha256(names).hexdigest()[:16],
            },
        }

    def differences(self, other: Protocol) -> list[str]:
        """What would keep scores from being comparable, one sentence each; [] if nothing.

        >>> from longclip_lab.data.benchmarks import get_protocol
        >>> get_protocol("world/kind").differences(get_protocol("world/kind"))
        []
        """
        return differing_facts(self.facts(), other.facts())


def differing_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The same for two `Protocol.facts()`, such as those of records read from disk."""
    keys = [key for key in {**one, **other} if key not in NOT_COMPARED]
    return [
        f"{key.replace('_', ' ')}: {_told(one.get(key))} against {_told(other.get(key))}"
        for key in keys
        if one.get(key) != other.get(key)
    ]


def _told(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return f"{len(value)} ({value[0]!r} ...)" if value else "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
    return str(value) if value not in (None, "") else "not stated"


@dataclass(frozen=True)
class Benchmark:
    """A protocol with its pictures and texts, checked against what the protocol promises.

    `images` are N paths or a uint8 array [N, H, W, 3]. For retrieval, text j belongs to picture
    `image_of_text[j]` and `labels` is None; for classification `labels` [N] are indices into
    `class_names`, and `texts` and `image_of_text` are empty.
    """

    protocol: Protocol
    images: Sequence[Path] | np.ndarray
    texts: list[str] = field(default_factory=list, repr=False)
    image_of_text: list[int] = field(default_factory=list, repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    class_names: tuple[str, ...] = field(default=(), repr=False)
    templates: tuple[str, ...] = field(default=(), repr=False)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """What was left out, by reason and name; nothing unless `partial`."""
    partial: bool = False
    """Some of what the protocol promises is missing: a score is not comparable."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where it came from, JSON-able, without the folder's place; "hash" covers what is scored."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        return self.protocol.name
