"""What a benchmark is, word by word, and what opening it gives.

ImageNet's come from open_clip, whose import takes seconds: a table of protocols must not wait.

A protocol says which pictures, which texts and how they are read; a benchmark is a protocol with
the pictures and texts themselves. Two scores can be compared if their protocols do not differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longclip_lab import world
from longclip_lab.errors import LabError, suggest
from longclip_lab.text import split_subcaptions

# --- What is done to a published text before a tokenizer gets it ---

AS_WRITTEN, FIRST_LINE = "as written", "first line"
ON_ONE_LINE, SUBCAPTIONS = "line breaks as blanks", "sub-captions joined by '. '"

PROCESSING: dict[str, Callable[[str], str]] = {
    AS_WRITTEN: str.strip,
    FIRST_LINE: lambda text: text.split("\n")[0].strip(),
    ON_ONE_LINE: lambda text: text.replace("\n", " ").strip(),
    SUBCAPTIONS: lambda text: ". ".join(split_subcaptions(text)),
}
"""By name, as protocols call it. Ends are stripped always, as every tokenizer would.

first line: Long-CLIP's and LoTLIP's evaluation of Urban-1k reads one line of a caption file.
line breaks as blanks: Long-CLIP's code on ShareGPT4V.
sub-captions joined: LoTLIP's evaluation code, for every model it scores: the text is split at
    line breaks, "</s>" and full stops and joined by ". ", so the last full stop is gone and "3.5"
    becomes "3. 5".
"""


# --- Class names and templates by name, looked up when they are needed ---

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

CIFAR100_CLASSES = (
    "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple tree", "motorcycle", "mountain", "mouse", "mushroom", "oak tree", "orange", "orchid",
    "otter", "palm tree", "pear", "pickup truck", "pine tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf", "woman",
    "worm",
)  # fmt: skip

_PHOTOS = (
    *("a photo of {}", "a blurry photo of {}", "a black and white photo of {}"),
    *("a low contrast photo of {}", "a high contrast photo of {}", "a bad photo of {}"),
    *("a good photo of {}", "a photo of {} small", "a photo of {} big"),
)
CIFAR_TEMPLATES = tuple(
    f"{photo.format(article)} {{}}." for article in ("a", "the") for photo in _PHOTOS
)


@cache
def class_names(name: str) -> tuple[str, ...]:
    """The class names called `name`, in the order of the labels.

    Raises LabError for an unknown name.

    >>> class_names("cifar100 with underscores")[1]
    'aquarium_fish'
    """
    if name == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES

        return tuple(IMAGENET_CLASSNAMES)
    known = {
        "": (),
        "cifar10": CIFAR10_CLASSES,
        "cifar100": CIFAR100_CLASSES,
        "cifar100 with underscores": tuple(one.replace(" ", "_") for one in CIFAR100_CLASSES),
        "world kind": tuple(world.classes("kind")),
        "world colour": tuple(world.classes("colour")),
    }
    return known[_checked(name, [*known, "imagenet"])]


@cache
def templates(name: str) -> tuple[str, ...]:
    """The templates called `name`, each with one "{}".

    Raises LabError for an unknown name.

    >>> len(templates("cifar")), templates("cifar")[0]
    (18, 'a photo of a {}.')
    """
    if name == "imagenet":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    known = {"": (), "cifar": CIFAR_TEMPLATES, "world": tuple(world.TEMPLATES)}
    return known[_checked(name, [*known, "imagenet"])]


def _checked(name: str, known: list[str]) -> str:
    if name not in known:
        raise LabError(f"There are no class names or templates {name!r}. {suggest(name, known)}")
    return name


# --- What a benchmark is, word by word, and what opening it gives ---

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
        return templates(self.prompts)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels; a benchmark on disk may have only some of them."""
        return class_names(self.classes)

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
