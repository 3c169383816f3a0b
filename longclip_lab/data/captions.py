"""COCO's caption files: read, checked, and turned into captions by picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longclip_lab.data.usable import check_inside, check_text
from longclip_lab.errors import LabError

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

    Collects as defects: empty captions, captions of a picture that is not listed. Raises
    LabError for a file that is missing, empty, not UTF-8, not JSON, of another form, that lists
    a picture twice, or whose file names leave the folder.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise LabError(f"{path} holds a JSON {type(content).__name__}; expected {FORM}.")
    names = _file_names(path, _records(path, content, "images"))
    result = CaptionFile({name: [] for name in names.values()})
    seen: set[int | str] = set()
    for position, record in _records(path, content, "annotations"):
        where = f"{path}: annotations[{position}]"
        caption = record.get("caption")
        image_id = _identity(record, "image_id", where)
        if not isinstance(caption, str):
            raise LabError(f'{where} has no text under "caption"; expected {FORM}.')
        check_text(caption, where)
        if "id" in record:
            identity = _identity(record, "id", where)
            if identity in seen:
                raise LabError(f"{where} repeats the annotation id {identity}; ids must differ.")
            seen.add(identity)
        if image_id not in names:
            _note(result, "caption of a picture that is not listed", f"image_id {image_id}")
        elif not caption.strip():
            _note(result, "empty caption", names[image_id])
        else:
            result.captions[names[image_id]].append(caption.strip())
    return result


def read_text(path: Path) -> str:
    """The whole of a UTF-8 text file. Raises LabError if it is missing, empty or not UTF-8."""
    if not path.is_file():
        raise LabError(f"There is no file {path}.")
    content = path.read_bytes()
    if not content.strip():
        raise LabError(f"{path} is empty.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabError(
            f"{path} is not UTF-8 text: byte {content[error.start]:#04x} at position "
            f"{error.start}. Save it as UTF-8."
        ) from None


def _read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise LabError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}. "
            "Is the file complete?"
        ) from None
    except RecursionError:
        raise LabError(f"{path} is nested too deeply; expected {FORM}.") from None


def _records(path: Path, content: dict, key: str) -> Iterator[tuple[int, dict]]:
    if not isinstance(content.get(key), list):
        raise LabError(f'{path} has no list "{key}"; expected {FORM}.')
    for position, record in enumerate(content[key]):
        if not isinstance(record, dict):
            raise LabError(f"{path}: {key}[{position}] is not an object; expected {FORM}.")
        yield position, record


def _identity(record: dict, key: str, where: str) -> int | str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise LabError(f'{where} has no number under "{key}"; expected {FORM}.')
    return value


def _file_names(path: Path, records: Iterator[tuple[int, dict]]) -> dict[int | str, str]:
    names: dict[int | str, str] = {}
    listed: set[str] = set()
    for position, record in records:
        where = f"{path}: images[{position}]"
        identity = _identity(record, "id", where)
        name = record.get("file_name")
        if not isinstance(name, str) or not name:
            raise LabError(f'{where} has no text under "file_name"; expected {FORM}.')
        check_text(name, where)
        check_inside(name, where)
        if identity in names:
            raise LabError(f"{where} repeats the image id {identity}; every image once, please.")
        if name in listed:
            raise LabError(f"{where} repeats the file {name}; every image once, please.")
        names[identity] = name
        listed.add(name)
    return names


def _note(result: CaptionFile, reason: str, name: str) -> None:
    result.defects.setdefault(reason, []).append(name)
