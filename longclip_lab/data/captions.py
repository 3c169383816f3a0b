"""COCO's caption files: read, checked, and turned into captions by picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from longclip_lab.data.usable import caption_defect, inside
from longclip_lab.errors import LabError
from longclip_lab.files import json_kind, read_json

FORM = (
    'COCO\'s form {"images": [{"id": 1, "file_name": "a.jpg"}, ...], '
    '"annotations": [{"id": 1, "image_id": 1, "caption": "..."}, ...]}'
)


@dataclass
class CaptionFile:
    """The pictures of a caption file in its order, their captions, and what is wrong with them."""

    captions: dict[str, list[str]]
    defects: dict[str, list[str]] = field(default_factory=dict)


def read_captions(path: Path) -> CaptionFile:
    """Read a COCO caption file (UTF-8 JSON); captions keep the file's order, ends stripped.

    Collects as defects: captions that are empty, missing (null, NaN) or no text, captions of a
    picture that is not listed. Raises LabError for a file that is missing, empty, not UTF-8, not
    JSON, of another form, that lists a picture twice, or whose file names leave the folder.
    """
    content = read_json(path, allow_nan=True)
    if not isinstance(content, dict):
        raise LabError(f"{path} holds a JSON {json_kind(content)}; expected {FORM}.")
    names = file_names(path, records_under(path, content, "images"))
    result = CaptionFile({name: [] for name in names.values()})
    seen: set[int | str] = set()
    for position, record in records_under(path, content, "annotations"):
        where = f"{path}: annotations[{position}]"
        image_id = identity_under(record, "image_id", where)
        if "caption" not in record:
            raise LabError(f'{where} has no text under "caption"; expected {FORM}.')
        check_id(record, where, seen)
        if image_id not in names:
            _note(result, "caption of a picture that is not listed", f"image_id {image_id}")
        elif defect := caption_defect(record["caption"]):
            _note(result, defect, names[image_id])
        else:
            result.captions[names[image_id]].append(record["caption"].strip())
    return result


def records_under(
    path: Path, content: dict, key: str, form: str = FORM
) -> Iterator[tuple[int, dict]]:
    """The objects of the list `key` with their positions. Raises LabError for anything else."""
    if not isinstance(content.get(key), list):
        raise LabError(f'{path} has no list "{key}"; expected {form}.')
    for position, record in enumerate(content[key]):
        if not isinstance(record, dict):
            raise LabError(f"{path}: {key}[{position}] is not an object; expected {form}.")
        yield position, record


def check_id(record: dict, where: str, seen: set[int | str], form: str = FORM) -> None:
    """Add the id of an annotation, where it has one. Raises LabError for one that is known."""
    if "id" not in record:
        return
    identity = identity_under(record, "id", where, form)
    if identity in seen:
        raise LabError(f"{where} repeats the annotation id {identity}; ids must differ.")
    seen.add(identity)


def identity_under(record: dict, key: str, where: str, form: str = FORM) -> int | str:
    """A picture's or an annotation's id. Raises LabError for anything but a number or a text."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise LabError(f'{where} has no number under "{key}"; expected {form}.')
    return value


def file_names(
    path: Path, records: Iterator[tuple[int, dict]], form: str = FORM
) -> dict[int | str, str]:
    """The pictures' names by id, every id and every name once. Raises LabError otherwise."""
    names: dict[int | str, str] = {}
    listed: set[str] = set()
    for position, record in records:
        where = f"{path}: images[{position}]"
        identity = identity_under(record, "id", where, form)
        name = record.get("file_name")
        name = inside(name, where) if isinstance(name, str) else ""
        if not name:
            raise LabError(f'{where} has no file\'s name under "file_name"; expected {form}.')
        if identity in names:
            raise LabError(f"{where} repeats the image id {identity}; every image once, please.")
        if name in listed:
            raise LabError(f"{where} repeats the file {name}; every image once, please.")
        names[identity] = name
        listed.add(name)
    return names


def _note(result: CaptionFile, reason: str, name: str) -> None:
    result.defects.setdefault(reason, []).append(name)
