"""Benchmarks by name: opened, verified, and refused where they are not whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longclip_lab.data.benchmarks.catalogue import get_protocol, open_drawn
from longclip_lab.data.benchmarks.protocol import Benchmark, Protocol
from longclip_lab.data.benchmarks.readers import (
    CAPTIONLESS,
    READERS,
    TOO_FEW,
    Found,
    Place,
    find_place,
    whole_place,
)
from longclip_lab.data.validation import Defects, content_hash, told, usable_pictures
from longclip_lab.errors import LabError
from longclip_lab.files import readable

if TYPE_CHECKING:
    import pandas as pd


# --- Benchmarks by name: opened, and refused where they are not whole ---


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


# --- What of a benchmark is there, missing, extra, broken, and how to get it ---

_NAMED = 10
_MISSING = (
    *("missing picture", "missing annotation", "class without a folder", TOO_FEW, CAPTIONLESS),
)


@dataclass(frozen=True)
class Verification:
    """What of a benchmark is on disk; `str` tells it.

    `there`, `missing`, `extra` and `broken` are names or sentences, one for each file or finding.
    """

    protocol: Protocol
    ok: bool
    """All of it is there and can be read. Extra files do no harm."""
    home: str = ""
    """The folder that was looked at."""
    there: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    steps: tuple[str, ...] = ()
    """How to get it."""

    def table(self) -> pd.DataFrame:
        """One row a name: what ("there", "missing", "extra", "broken") and name."""
        import pandas as pd

        rows = [(what, name) for what, names in self._lists().items() for name in names]
        return pd.DataFrame(rows, columns=["what", "name"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        facts = {"benchmark": self.protocol.name, "ok": self.ok, "home": self.home}
        return facts | self._lists() | {"steps": list(self.steps)}

    def __str__(self) -> str:
        verdict = "whole" if self.ok else "not whole"
        lines = [f"{self.protocol.name}: {verdict}" + (f" ({self.home})" if self.home else "")]
        for what, names in self._lists().items():
            if names:
                count = "" if what == "there" else f" ({len(names):,})"
                lines.append(f"{what}{count}:")
                lines += [f"  {name}" for name in names[:_NAMED]]
                if len(names) > _NAMED:
                    lines.append(f"  and {len(names) - _NAMED:,} more")
        if not self.ok:
            lines.append("how to get it:")
            lines += [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
            lines.append(f"  It should hold {self.protocol.layout}.")
        return "\n".join(lines)

    def _lists(self) -> dict[str, list[str]]:
        return {
            "there": self.there,
            "missing": self.missing,
            "extra": self.extra,
            "broken": self.broken,
        }


def verify(
    name: str | Protocol,
    root: str | Path | None = None,
    decode: bool = True,
    progress: bool = False,
) -> Verification:
    """Look a benchmark over without opening it: every file, every picture, every text.

    `decode=False` only looks whether pictures are there. Raises LabError for an unknown name and
    for a `root` that is no folder; all else is told in the result.

    >>> verify("world/kind").ok
    True
    """
    protocol = get_protocol(name) if isinstance(name, str) else name
    if protocol.reader == "drawn":
        return Verification(protocol, True, there=[protocol.images, protocol.texts])
    place = find_place(protocol, root)
    missing = [*place.missing, *(f"folder {name}" for name in place.missing_folders)]
    facts = {"protocol": protocol, "home": str(place.home), "steps": protocol.get}
    if place.missing:
        there = [str(path.relative_to(place.home)) for path in place.files if path.exists()]
        return Verification(ok=False, there=there, missing=missing, **facts)
    try:
        found = READERS[protocol.reader](place, protocol)
    except LabError as error:
        return Verification(ok=False, missing=missing, broken=[str(error)], **facts)
    defects: Defects = dict(found.defects)
    names = list(found.texts or found.labels)
    usable = names
    if found.arrays is None:
        usable = list(usable_pictures(place.home, names, decode, defects, progress))
    wrong = shortfall(protocol, found, usable, defects)
    for reason, which in defects.items():
        if reason in _MISSING:
            missing += [name if reason == _MISSING[0] else f"{name}: {reason}" for name in which]
    missing += _unlisted(protocol, found)
    return Verification(
        ok=not wrong,
        there=_there(protocol, found, usable),
        missing=missing,
        extra=_extra(place, found),
        broken=[
            one if reason == "broken picture" else f"{one}: {reason}"
            for reason, which in defects.items()
            if reason not in _MISSING
            for one in which
        ],
        **facts,
    )


def _unlisted(protocol: Protocol, found: Found) -> list[str]:
    """Pictures that are missing from the lists themselves can be counted, not named."""
    count = protocol.num_images - len(found.texts) - sum(map(len, found.defects.values()))
    listed_whole = len(found.texts) in protocol.also_counted
    if protocol.task == "classification" or count <= 0 or listed_whole:
        return []
    return [f"{count:,} pictures that no file lists"]


def _there(protocol: Protocol, found: Found, usable: list[str]) -> list[str]:
    there = [*found.read, f"{len(usable):,} of {protocol.num_images:,} pictures can be used"]
    if protocol.task == "retrieval":
        texts = sum(map(len, found.texts.values()))
        there.append(f"{texts:,} of {protocol.num_texts:,} texts")
    else:
        there.append(f"{len(found.class_names):,} classes")
    return there


def _extra(place: Place, found: Found) -> list[str]:
    """Files that the benchmark does not ask for, in folders that should hold nothing else."""
    extra = []
    for folder, belongs in found.exact.items():
        if (place.home / folder).is_dir():
            extra += [
                readable(f"{folder}/{path.name}")
                for path in sorted((place.home / folder).iterdir())
                if not path.name.startswith(".") and not belongs(path.name)
            ]
    return extra
