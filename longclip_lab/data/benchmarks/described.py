"""Readers of long texts: ShareGPT4V, DCI and Long-DCI, ImageInWords, DOCCI.

As in `captioned`: each returns what is listed, and raises LabError for a file that is not what it
should be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from longclip_lab.data.benchmarks.found import Found, check_file, read_object, text_under
from longclip_lab.data.benchmarks.places import Place
from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.data.tables import read_rows
from longclip_lab.data.usable import check_inside
from longclip_lab.errors import LabError

_BLOCK = 2**20  # characters read at a time
_BETWEEN = re.compile(r"[\s,]*")


def read_sharegpt4v(place: Place, protocol: Protocol) -> Found:
    """The first `num_images` entries of a JSON list; no more of a file of a gigabyte is read."""
    (path,) = place.files
    found = Found()
    count = 0
    for where, row in islice(first_objects(path), protocol.num_images):
        turns = row.get("conversations")
        answer = turns[1] if isinstance(turns, list) and len(turns) > 1 else None
        if not isinstance(answer, dict):
            raise LabError(
                f'{where}: expected {{"image": "sam/images/sa_1.jpg", "conversations": [question, '
                f'{{"value": the text}}]}}, got the keys {", ".join(map(repr, row))}.'
            )
        text = protocol.process(text_under(answer, "value", where))
        found.add(text_under(row, "image", where), [text], where)
        count += 1
    found.read.append(f"{path.name}: its first {count:,} entries")
    return found


def first_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list one by one, with where each stands, reading no further.

    Raises LabError for a file that is no list of objects, or is cut off.
    """
    check_file(path)
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        try:
            text = file.read(_BLOCK).lstrip()
            if not text.startswith("["):
                raise LabError(f"{path} does not begin as a JSON list; expected [{{...}}, ...].")
            at, number = 1, 0
            while True:
                at = _BETWEEN.match(text, at).end()
                if text.startswith("]", at):
                    return
                where = f"{path}, entry {number}"
                try:
                    value, at = decoder.raw_decode(text, at)
                except json.JSONDecodeError as error:
                    # Wrong, or only cut by the end of what was read so far.
                    more = file.read(_BLOCK)
                    if not more:
                        raise LabError(f"{where}: {error.msg}. Is the file complete?") from None
                    text, at = text[at:] + more, 0
                    continue
                if not isinstance(value, dict):
                    raise LabError(f"{where}: expected an object, got {value!r:.60}.")
                yield where, value
                number += 1
        except UnicodeDecodeError as error:
            raise LabError(f"{path} is not UTF-8 text: {error.reason}. Save it as UTF-8.") from None


def read_dci(place: Place, protocol: Protocol) -> Found:
    """DCI's own folder: splits.json lists annotations; each has a picture and its texts."""
    (splits, annotations), (photos,) = place.files, place.folders
    found = Found()
    names = _split_names(splits, protocol.options["splits"])
    for name in names:
        check_inside(name, str(splits))
        path = annotations / name
        if not path.is_file():
            found.note("missing annotation", f"{annotations.name}/{name}")
            continue
        row = read_object(path)
        parts = [text_under(row, key, str(path)) for key in ("short_caption", "extra_caption")]
        picture = text_under(row, "image", str(path))
        text = protocol.process("\n".join(parts))
        found.add(_below(photos, picture, place), [text], f"{annotations.name}/{name}")
    found.read.append(f"{splits.relative_to(place.home)}: lists {len(names):,} annotations")
    return found


def _split_names(path: Path, splits: list[str] | None) -> list[str]:
    content = read_object(path)
    absent = [split for split in splits or [] if split not in content]
    if absent:
        raise LabError(f"{path} has no split {absent[0]!r}; it has {', '.join(content)}.")
    chosen = [content[split] for split in (splits or content)]
    names = [name for names in chosen if isinstance(names, list) for name in names]
    if not names or not all(isinstance(name, str) for name in names):
        raise LabError(f'{path}: expected {{"train": ["0001.json", ...], ...}}.')
    return names


def read_long_dci(place: Place, protocol: Protocol) -> Found:
    """A table with the columns filepath and title, parted by tabs."""
    (path,), (photos,) = place.files, place.folders
    found = Found()
    for where, row in read_rows(path):
        if not {"filepath", "title"} <= row.keys():
            has = ", ".join(map(repr, row))
            raise LabError(f"{path}: expected the columns 'filepath' and 'title', got {has}.")
        at = f"{path.name}, {where}"
        found.add(_below(photos, row["filepath"], place), [protocol.process(row["title"])], at)
    found.read.append(f"{path.name}: lists {len(found.texts):,} pictures")
    return found


def read_imageinwords(place: Place, protocol: Protocol) -> Found:
    """Three files of JSON lines; their pictures lie in dci, docci and docci_aar."""
    found = Found()
    for path, folder in zip(place.files, place.folders, strict=True):
        count = 0
        for where, row in read_rows(path):
            at = f"{path}, {where}"
            name = text_under(row, "image" if "image" in row else "image/key", at)
            name = name if name.endswith(".jpg") else f"{name}.jpg"
            text = protocol.process(text_under(row, "IIW", at))
            found.add(_below(folder, name, place), [text], f"{path.parent.name}, {where}")
            count += 1
        found.read.append(f"{path.relative_to(place.home).as_posix()}: {count:,} lines")
    return found


def read_docci(place: Place, protocol: Protocol) -> Found:
    """docci_descriptions.jsonlines: the lines of one split whose id begins with its name."""
    (path,), (images,) = place.files, place.folders
    found, splits = Found(), set()
    for where, row in read_rows(path):
        at = f"{path}, {where}"
        split, identity = text_under(row, "split", at), text_under(row, "example_id", at)
        splits.add(split)
        if split == protocol.split and identity.startswith(protocol.split):
            name = text_under(row, "image_file", at)
            text = protocol.process(text_under(row, "description", at))
            found.add(_below(images, name, place), [text], f"{path.name}, {where}")
    if not found.texts and not found.defects:
        has = ", ".join(sorted(splits)) or "no line"
        raise LabError(f"{path} has no line of the split {protocol.split!r}; it has {has}.")
    found.read.append(f"{path.name}: lists {len(found.texts):,} pictures of {protocol.split}")
    return found


def _below(folder: Path, name: str, place: Place) -> str:
    """The path below the benchmark's folder of a picture that a file names below `folder`."""
    check_inside(name, str(folder))
    prefix = folder.relative_to(place.home).as_posix()
    return name if prefix == "." else f"{prefix}/{name}"
