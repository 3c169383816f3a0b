"""Benchmarks: what exactly is scored under a name.

Every picture set is held out: the world's test pictures come from world.TEST_SEED, which no
training set uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from longclip_lab import world
from longclip_lab.errors import LabError, suggest
from longclip_lab.models.encoding import Images

POOL = 1000
"""Pictures in a pool of the world. R@1 at 1,000 has a standard error of up to 1.6 points."""
SIBLINGS = 4
"""Pictures of the long captions' pool that share a summary and differ only in details."""


@dataclass(frozen=True)
class RetrievalTask:
    """Images and the texts that belong to them."""

    name: str
    images: Images
    texts: list[str]
    image_of_text: list[int]
    source: dict[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassificationTask:
    """Images with one class each, and the prompts to find it by."""

    name: str
    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    source: dict[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)


Task = RetrievalTask | ClassificationTask


def pairs_tasks(pairs: Any) -> list[Task]:
    """Retrieval with the long captions of a pairs object, and with its short `captions`.

    Anything with the fields `name`, `images`, `long`, `captions`, `skipped` and `source` will
    do. A picture without captions is left out and counted. Raises LabError for an object
    without these fields, for no pictures and for an empty caption.
    """
    fields = ("name", "images", "long", "captions", "skipped", "source")
    missing = [name for name in fields if not hasattr(pairs, name)]
    if missing:
        raise LabError(
            f"Expected the name of a benchmark or an object with {', '.join(fields)}; "
            f"{type(pairs).__name__} has no {missing[0]}."
        )
    return [long_retrieval(pairs), short_retrieval(pairs)]


def long_retrieval(pairs: Any) -> RetrievalTask:
    """One long caption a picture."""
    return _retrieval_task(f"{pairs.name}/long-retrieval", pairs, [[text] for text in pairs.long])


def short_retrieval(pairs: Any) -> RetrievalTask:
    """All short captions of a picture; the pictures' order is that of `long_retrieval`."""
    return _retrieval_task(f"{pairs.name}/short-retrieval", pairs, pairs.captions)


def _retrieval_task(name: str, pairs: Any, captions: list[list[str]]) -> RetrievalTask:
    if len(captions) != len(pairs.images):
        raise LabError(
            f"{name}: expected captions for every picture, got {len(captions)} for "
            f"{len(pairs.images)} pictures."
        )
    captioned = [index for index, texts in enumerate(captions) if texts]
    if not captioned:
        raise LabError(f"{name}: there is no picture with a caption.")
    for index in captioned:
        if not all(text.strip() for text in captions[index]):
            raise LabError(f"{name}: picture {index} has an empty caption; leave it out.")
    images = pairs.images
    skipped = {reason: len(names) for reason, names in pairs.skipped.items()}
    if len(captioned) < len(images):
        skipped["no caption in the benchmark"] = len(images) - len(captioned)
        images = (
            images[captioned]
            if isinstance(images, np.ndarray)
            else [images[index] for index in captioned]
        )
    return RetrievalTask(
        name=name,
        images=images,
        texts=[text for index in captioned for text in captions[index]],
        image_of_text=[row for row, index in enumerate(captioned) for _ in captions[index]],
        source=dict(pairs.source),
        skipped=skipped,
    )


@lru_cache(maxsize=1)
def _world_pairs() -> world.WorldPairs:
    return world.pairs(POOL, seed=world.TEST_SEED)


@lru_cache(maxsize=1)
def _world_siblings() -> world.WorldPairs:
    """Four pictures share each summary, so who reads only that is right one time in four."""
    return world.pairs(POOL, seed=world.TEST_SEED, siblings=SIBLINGS)


@lru_cache(maxsize=1)
def _world_single() -> world.SingleObjects:
    return world.single_objects(POOL, seed=world.TEST_SEED)


def _world_classification(attribute: str) -> ClassificationTask:
    single = _world_single()
    return ClassificationTask(
        name=f"world/{attribute}",
        images=single.images,
        labels=single.labels[attribute],
        class_names=tuple(world.classes(attribute)),
        templates=tuple(world.TEMPLATES),
        source=dict(single.source),
    )


BENCHMARKS: dict[str, Callable[[], Task]] = {
    "world/long-retrieval": lambda: long_retrieval(_world_siblings()),
    "world/short-retrieval": lambda: short_retrieval(_world_pairs()),
    "world/kind": lambda: _world_classification("kind"),
    "world/colour": lambda: _world_classification("colour"),
}


def tasks(benchmark: Any) -> list[Task]:
    """The tasks of a benchmark: one for a name, two for a pairs object.

    Raises LabError for an unknown name, with the names near to it.
    """
    if not isinstance(benchmark, str):
        return pairs_tasks(benchmark)
    if benchmark not in BENCHMARKS:
        raise LabError(f"There is no benchmark {benchmark!r}. {suggest(benchmark, BENCHMARKS)}")
    return [BENCHMARKS[benchmark]()]
