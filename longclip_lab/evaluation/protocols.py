"""Tasks: what exactly is scored, of a benchmark by name or of anybody's own pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data.benchmarks import PROTOCOLS, Benchmark, open_benchmark
from longclip_lab.errors import LabError
from longclip_lab.models.encoding import Images

BENCHMARKS = tuple(name for name in PROTOCOLS if name.startswith("world/"))
"""The drawn world's own benchmarks, which need no files; `data.benchmarks.PROTOCOLS` has all."""
TIE = "pessimistic"


@dataclass(frozen=True)
class RetrievalTask:
    """Images and the texts that belong to them."""

    name: str
    images: Images
    texts: list[str]
    image_of_text: list[int]
    source: dict[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the protocol says, for a benchmark by name."""
    partial: bool = False
    """Some of what the protocol promises is missing."""

    def encoded(self) -> list[str]:
        """The texts that a model gets."""
        return self.texts

    def settings(self) -> dict[str, Any]:
        """Options that decide the score."""
        return {"tie": self.facts.get("tie", TIE)}


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
    facts: dict[str, Any] = field(default_factory=dict)
    """What the protocol says, for a benchmark by name."""
    partial: bool = False
    """Some of what the protocol promises is missing."""

    def encoded(self) -> list[str]:
        """The texts that a model gets: classes times templates."""
        return [template.format(name) for name in self.class_names for template in self.templates]

    def settings(self) -> dict[str, Any]:
        """Options that decide the score."""
        chosen = {"templates": list(self.templates), "classes": list(self.class_names)}
        return {"tie": self.facts.get("tie", TIE), **chosen}


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


def benchmark_task(benchmark: Benchmark) -> Task:
    """The task of an opened benchmark."""
    protocol = benchmark.protocol
    shared = {
        "name": protocol.name,
        "images": benchmark.images,
        "source": dict(benchmark.source),
        "skipped": {reason: len(names) for reason, names in benchmark.skipped.items()},
        "facts": protocol.facts(),
        "partial": benchmark.partial,
    }
    if benchmark.labels is None:
        texts, image_of_text = list(benchmark.texts), list(benchmark.image_of_text)
        return RetrievalTask(texts=texts, image_of_text=image_of_text, **shared)
    return ClassificationTask(
        labels=benchmark.labels,
        class_names=tuple(benchmark.class_names),
        templates=tuple(benchmark.templates),
        **shared,
    )


def tasks(
    benchmark: Any,
    root: str | Path | None = None,
    allow_partial: bool = False,
    progress: bool = False,
) -> list[Task]:
    """The tasks of a benchmark: one for a name or an opened one, two for a pairs object.

    Files are read below `root`. Raises LabError for an unknown name, with the names near to it, and
    as `data.benchmarks.open_benchmark` does.
    """
    if isinstance(benchmark, str):
        benchmark = open_benchmark(benchmark, root, allow_partial, progress)
    return (
        [benchmark_task(benchmark)] if isinstance(benchmark, Benchmark) else pairs_tasks(benchmark)
    )
