"""Benchmarks by name: opened, and refused where they are not whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longclip_lab.data.benchmarks.catalogue import get_protocol
from longclip_lab.data.benchmarks.drawn import open_drawn
from longclip_lab.data.benchmarks.found import Found
from longclip_lab.data.benchmarks.places import whole_place
from longclip_lab.data.benchmarks.protocol import Benchmark, Protocol
from longclip_lab.data.benchmarks.readers import READERS
from longclip_lab.data.usable import Defects, content_hash, told, usable_pictures
from longclip_lab.errors import LabError


def open_benchmark(
    name: str | Protocol,
    root: str | Path | None = None,
    allow_partial: bool = False,
    progress: bool = False,
    decode: bool = True,
) -> Benchmark:
    """Open a benchmark by its name, or by a protocol of your own (`dataclasses.replace`).

    The drawn world's need no `root`; the others are read below it: `root` is the benchmark's
    folder, or a folder that holds it under one of its usual names.

    What is opened is what the protocol promises, or a LabError says what is missing, broken, empty
    or there twice. With `allow_partial=True` the usable rest is opened: `partial` is True then and
    `skipped` names what was left out. `decode=True` reads every picture once (about 2 ms each), so
    that damage shows now and not in the middle of a run, and `source["hash"]` covers the pictures'
    bytes; with `decode=False` it covers their names.

    Raises LabError also for an unknown name, files of another form and paths that lead out of the
    folder.

    >>> open_benchmark("urban1k")
    Traceback (most recent call last):
    longclip_lab.errors.LabError: urban1k is read from disk: say where with root (--root DIR)...
    """
    protocol = get_protocol(name) if isinstance(name, str) else name
    if protocol.reader == "drawn":
        return open_drawn(protocol)
    place = whole_place(protocol, root)
    found = READERS[protocol.reader](place, protocol)
    defects: Defects = dict(found.defects)
    names = list(found.texts or found.labels)
    if found.arrays is None:
        digests = usable_pictures(place.home, names, decode, defects, progress)
    else:
        digests = dict.fromkeys(names, "")
    wrong = shortfall(protocol, found, list(digests), defects)
    if wrong and not allow_partial:
        raise LabError(_refusal(protocol, wrong, defects, place.missing_folders))
    if not digests:
        raise LabError(f"{protocol.name}: {place.home} holds no picture of it that can be used.")
    images = [place.home / one for one in digests] if found.arrays is None else found.arrays
    return _benchmark(protocol, found, digests, images, defects, bool(wrong))


def shortfall(protocol: Protocol, found: Found, usable: list[str], defects: Defects) -> list[str]:
    """What keeps the usable pictures from being the benchmark, in words; [] if nothing does."""
    wrong = []
    pictures = protocol.num_images
    if len(usable) in protocol.also_counted:
        pictures = len(usable)
    if len(usable) != pictures:
        wrong.append(_count(len(usable), pictures, "pictures"))
    if protocol.task == "retrieval":
        texts = sum(len(found.texts[name]) for name in usable)
        wanted = protocol.num_texts if pictures == protocol.num_images else pictures
        if texts != wanted:
            wrong.append(_count(texts, wanted, "texts"))
    else:
        classes = protocol.options.get("classes", len(protocol.class_names))
        if len(found.class_names) != classes:
            wrong.append(_count(len(found.class_names), classes, "classes"))
    if defects and not wrong:
        wrong.append("as many pictures and texts as it should have, but not as they should be")
    return wrong


def _count(there: int, wanted: int, what: str) -> str:
    if there > wanted:
        return f"{there:,} {what} where there should be {wanted:,}"
    return f"{there:,} of {wanted:,} {what}"


def _refusal(
    protocol: Protocol, wrong: list[str], defects: Defects, missing_folders: tuple[str, ...]
) -> str:
    lacking = f" It lacks the folder {'; '.join(missing_folders)}." if missing_folders else ""
    named = f" {told(defects)}." if defects else ""
    return (
        f"{protocol.name} is not whole: {', '.join(wrong)}.{lacking}{named} `longclip-lab data "
        f"verify {protocol.name} --root DIR` names everything and says how to get it. To go on "
        "with the rest, say allow_partial=True (--allow-partial): the record will say partial."
    )


def _benchmark(
    protocol: Protocol,
    found: Found,
    digests: dict[str, str],
    images: list[Path] | np.ndarray,
    defects: Defects,
    partial: bool,
) -> Benchmark:
    source = {
        "dataset": protocol.name,
        "pictures": len(digests),
        "partial": partial,
        "hash_of": "pictures and texts" if any(digests.values()) else "pictures' names and texts",
    }
    if protocol.task == "classification":
        labels = np.array([found.labels[name] for name in digests])
        if found.arrays is not None:
            source["hash_of"] = "the published file, known by its MD5"
        source["hash"] = content_hash(digests, [[str(label)] for label in labels])
        source["classes"] = len(found.class_names)
        return Benchmark(
            protocol,
            images,
            labels=labels,
            class_names=found.class_names,
            templates=protocol.templates,
            skipped=defects,
            partial=partial,
            source=source,
        )
    captions = [found.texts[name] for name in digests]
    texts = [text for of_picture in captions for text in of_picture]
    source |= {"texts": len(texts), "hash": content_hash(digests, captions)}
    return Benchmark(
        protocol,
        images,
        texts=texts,
        image_of_text=[row for row, of_picture in enumerate(captions) for _ in of_picture],
        skipped=defects,
        partial=partial,
        source=source,
    )
