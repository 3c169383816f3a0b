"""What benchmarks are: their protocols by name, from `benchmarks.yaml`, and what is scored.

A protocol says which images, which texts and how they are read; a benchmark is what a model is
scored on, the images with their texts or classes. Two scores can be compared if their protocols do
not differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from longclip_lab import world
from longclip_lab.data.pairs import KnownWords
from longclip_lab.errors import LabError, suggest
from longclip_lab.text import split_subcaptions

AS_WRITTEN, FIRST_LINE = "as written", "first line"
ON_ONE_LINE, SUBCAPTIONS = "line breaks as blanks", "sub-captions joined by '. '"

PROCESSING: dict[str, Callable[[str], str]] = {
    AS_WRITTEN: str.strip,
    FIRST_LINE: lambda text: text.split("\n")[0].strip(),
    ON_ONE_LINE: lambda text: text.replace("\n", " ").strip(),
    SUBCAPTIONS: lambda text: ". ".join(split_subcaptions(text)),
}
"""What is done to a published text before a tokenizer gets it. Ends are stripped always, as every
tokenizer would.

first line: Long-CLIP's and LoTLIP's evaluation of Urban-1k reads one line of a caption file.
line breaks as blanks: Long-CLIP's code on ShareGPT4V.
sub-captions joined: LoTLIP's evaluation code, for every model it scores: the text is split at
    line breaks, "</s>" and full stops and joined by ". ", so the last full stop is gone and "3.5"
    becomes "3. 5".
"""

_FACTS = yaml.load(
    (Path(__file__).parent / "benchmarks.yaml").read_text(encoding="utf-8"),
    getattr(yaml, "CSafeLoader", yaml.SafeLoader),  # the same in C is ten times as fast
)


@cache
def class_names(name: str) -> tuple[str, ...]:
    """The class names called `name`, in the order of the labels.

    Raises LabError for an unknown name.

    >>> class_names("cifar100 with underscores")[1]
    'aquarium_fish'
    """
    return _named_texts(name, _FACTS["class_names"], "class_names")


@cache
def templates(name: str) -> tuple[str, ...]:
    """The templates called `name`, each with one "{}".

    Raises LabError for an unknown name.

    >>> len(templates("cifar")), templates("cifar")[0]
    (18, 'a photo of a {}.')
    """
    return _named_texts(name, _FACTS["templates"], "templates")


def _named_texts(name: str, known: dict[str, list[str]], what: str) -> tuple[str, ...]:
    if name == "imagenet":
        # Importing open_clip takes seconds: a table of protocols must not wait for it.
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

        if what == "class_names":
            return tuple(IMAGENET_CLASSNAMES)
        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if what == "class_names":
        underscored = [one.replace(" ", "_") for one in known["cifar100"]]
        of_world = {f"world {what}": world.classes(what) for what in ("kind", "colour")}
        known = {"": [], **known, "cifar100 with underscores": underscored, **of_world}
    else:
        known = {"": [], **known, "world": world.TEMPLATES}
    if name not in known:
        names = [*known, "imagenet"]
        raise LabError(f"There are no class names or templates {name!r}. {suggest(name, names)}")
    return tuple(known[name])


# --- Protocols: everything that decides a score, apart from the model ---

OWN_PREPROCESSING = "the model's own"

NOT_COMPARED = (
    *("name", "about", "users", "get", "licence", "layout", "needs", "image_folders", "folders"),
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
    """Which images."""
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
    text_processing: str = AS_WRITTEN
    """A name in `PROCESSING`: what is done to a text before the tokenizer gets it."""
    tie: str = "pessimistic"
    """How equal scores are ranked. Official codes take the argmax, which gives the same score
    unless scores are equal to the last digit."""
    prompts: str = ""
    """Which templates, for classification: a name that `templates` knows."""
    classes: str = ""
    """Which class names: a name that `class_names` knows."""
    preprocess: str = OWN_PREPROCESSING
    users: tuple[str, ...] = ()
    """Papers and codes that report on it."""
    get: tuple[str, ...] = ()
    """Steps to download it."""
    licence: str = ""
    layout: str = ""
    """What lies in its folder, in words."""
    needs: tuple[tuple[str, ...], ...] = ()
    """Files or folders, below its folder, that list its images and hold its texts; each with the
    other names it is published under."""
    image_folders: tuple[tuple[str, ...], ...] = ()
    """Folders of its images, likewise."""
    folders: tuple[str, ...] = ()
    """Names of its folder below a common root, the usual one first."""
    also_counted: tuple[int, ...] = ()
    """Other numbers of images that sources give for the same set."""
    contaminated_by: tuple[str, ...] = ()
    """Training sets that hold images of it, as `Pairs.source` calls dataset and split.
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
        names = [one.name for one in fields(self) if one.name not in OF_THE_READER]
        of_classes = hashlib.sha256("\n".join(self.class_names).encode()).hexdigest()[:16]
        return {name: _nested(getattr(self, name), list) for name in names} | {
            "templates": list(self.templates),
            "class_names": {"count": len(self.class_names), "hash": of_classes},
        }

    def differences(self, other: Protocol) -> list[str]:
        """What would keep scores from being comparable, one sentence each; [] if nothing.

        >>> from longclip_lab.data.benchmarks import get_protocol
        >>> get_protocol("world/kind").differences(get_protocol("world/kind"))
        []
        """
        return differing_facts(self.facts(), other.facts())


def _nested(value: Any, kind: type) -> Any:
    """Lists and tuples, at any depth, as either of them."""
    return kind(_nested(one, kind) for one in value) if isinstance(value, list | tuple) else value


def differing_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The same for two `Protocol.facts()`, such as those of records read from disk."""
    keys = [key for key in {**one, **other} if key not in NOT_COMPARED]
    return [
        f"{key.replace('_', ' ')}: {_brief(one.get(key))} against {_brief(other.get(key))}"
        for key in keys
        if one.get(key) != other.get(key)
    ]


def _brief(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return f"{len(value)} ({value[0]!r} ...)" if value else "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
    return str(value) if value not in (None, "") else "not stated"


def _protocol(name: str, facts: Mapping[str, Any]) -> Protocol:
    options = facts.get("options", {})
    tuples = {key: _nested(value, tuple) for key, value in facts.items()}
    return Protocol(name, **{**tuples, "options": options})


PROTOCOLS: dict[str, Protocol] = {
    name: _protocol(name, facts) for name, facts in _FACTS["protocols"].items()
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a benchmark. Raises LabError for an unknown name, with near ones.

    >>> get_protocol("urban-1k")
    Traceback (most recent call last):
    longclip_lab.errors.LabError: There is no benchmark 'urban-1k'. Did you mean urban1k...
    """
    if name not in PROTOCOLS:
        raise LabError(f"There is no benchmark {name!r}. {suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


# --- Benchmarks: what a model is scored on ---


@dataclass(frozen=True)
class Benchmark:
    """Images with the texts or the classes that belong to them: what a model is scored on.

    `images` are N paths or a uint8 array [N, H, W, 3]. For retrieval, text j belongs to image
    `image_of_text[j]` and `labels` is None; for classification `labels` [N] are indices into
    `class_names`, and `texts` and `image_of_text` are empty.
    """

    name: str
    images: Sequence[Path] | np.ndarray
    texts: list[str] = field(default_factory=list, repr=False)
    image_of_text: list[int] = field(default_factory=list, repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    class_names: tuple[str, ...] = field(default=(), repr=False)
    templates: tuple[str, ...] = field(default=(), repr=False)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """What was left out, by reason and name."""
    partial: bool = False
    """Some of what the protocol promises is missing: a score is not comparable."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where it came from, JSON-able, without the folder's place; "hash" covers what is scored."""
    protocol: Protocol | None = None
    """What it promises; None for pairs of your own."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def facts(self) -> dict[str, Any]:
        """What the protocol says, JSON-able; {} without one."""
        return self.protocol.facts() if self.protocol else {}

    @property
    def tie(self) -> str:
        """How equal scores are ranked."""
        return self.protocol.tie if self.protocol else "pessimistic"

    def encoded_texts(self) -> list[str]:
        """The texts that a model gets; for classification, classes times templates."""
        if self.labels is None:
            return self.texts
        return [template.format(name) for name in self.class_names for template in self.templates]

    def known_to(self, words: Collection[str]) -> Benchmark:
        """The same with only these words in its texts, or in class names and templates.

        `source["words"]` counts what was left out; itself if nothing was.
        """
        known = KnownWords(words)
        changed: dict[str, Any] = {"texts": [known(text) for text in self.texts]}
        if self.labels is not None:
            changed["class_names"] = tuple(known(name) for name in self.class_names)
            parts = [[known(p) if p.strip() else "" for p in t.split("{}")] for t in self.templates]
            changed["templates"] = tuple(" {} ".join(part).strip() for part in parts)
        if not known.counts["left_out"]:
            return self
        return replace(self, **changed, source={**self.source, "words": known.counts.copy()})
