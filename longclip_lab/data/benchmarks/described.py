"""Readers of long texts: ShareGPT4V, DCI and Long-DCI, ImageInWords, DOCCI.

As in `captioned`: each returns what is listed, and raises LabError for a file that is not what it
should be.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from longclip_lab.data.benchmarks.found import Found, check_file, text_under, value_under
from longclip_lab.data.benchmarks.places import Place
from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.data.layouts import NO_ANSWER, answer_of
from longclip_lab.data.tables import read_rows
from longclip_lab.data.usable import EMPTY, caption_defect, inside
from longclip_lab.errors import LabError
from longclip_lab.files import read_json_object


def read_sharegpt4v(place: Place, protocol: Protocol) -> Found:
    """The first `num_images` entries of a JSON list; no more of a file of a gigabyte is read."""
    (path,) = place.files
    check_file(path)
    found = Found()
    count = 0
    for place_of, row in islice(read_rows(path), protocol.num_images):
        count += 1
        where = f"{path}, {place_of}"
        answer, picture = answer_of(row, where), text_under(row, "image", where)
        if answer is None:
            found.note(NO_ANSWER, f"{picture} ({where})")
        else:
            found.add(picture, [answer["value"]], protocol.process, where)
    found.read.append(f"{path.name}: its first {count:,} entries")
    return found


def read_dci(place: Place, protocol: Protocol) -> Found:
    """DCI's own folder: splits.json lists annotations; each has a picture and its texts."""
    (splits, annotations), (photos,) = place.files, place.folders
    found = Found()
    names = _split_names(splits, protocol.options["splits"])
    for name in names:
        name = inside(name, str(splits))
        path = annotations / name
        if not path.is_file():
            found.note("missing annotation", f"{annotations.name}/{name}")
            continue
        row = read_json_object(path, allow_nan=True)
        parts = [value_under(row, key, str(path)) for key in ("short_caption", "extra_caption")]
        wrong = [part for part in parts if caption_defect(part) not in ("", EMPTY)]
        whole = "\n".join("" if caption_defect(part) else part for part in parts)
        picture = _below(photos, text_under(row, "image", str(path)), place)
        where = f"{annotations.name}/{name}"
        found.add(picture, wrong or [whole], protocol.process, where)
    found.read.append(f"{splits.relative_to(place.home)}: lists {len(names):,} annotations")
    return found


def _split_names(path: Path, splits: list[str] | None) -> list[str]:
    content = read_json_object(path)
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
        picture = _below(photos, text_under(row, "filepath", at), place)
        found.add(picture, [row["title"]], protocol.process, at)
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
            name = name if name.endswith(".jpg") or not name else f"{name}.jpg"
            caption, at = value_under(row, "IIW", at), f"{path.parent.name}, {where}"
            found.add(_below(folder, name, place), [caption], protocol.process, at)
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
            caption, at = value_under(row, "description", at), f"{path.name}, {where}"
            found.add(_below(images, name, place), [caption], protocol.process, at)
    if not found.texts and not found.defects:
        has = ", ".join(sorted(splits)) or "no line"
        raise LabError(f"{path} has no line of the split {protocol.split!r}; it has {has}.")
    found.read.append(f"{path.name}: lists {len(found.texts):,} pictures of {protocol.split}")
    return found


def _below(folder: Path, name: str, place: Place) -> str:
    """The path below the benchmark's folder of a picture that a file names below `folder`."""
    name = inside(name, str(folder))
    prefix = folder.relative_to(place.home).as_posix()
    return name if prefix == "." or not name else f"{prefix}/{name}"
