"""Captions from files: plain text, JSON lines, JSON, and the folder of ImageInWords."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError, suggest
from longclip_lab.files import json_kind, parse_json, read_text

KEYS = ("IIW", "long_caption", "caption", "text", "description")
"""Where a record keeps its text: the first of these that the first record of a file has."""

IIW_PARTS = ("IIW-400", "DCI_Test", "DOCCI_Test")
"""The parts of ImageInWords (Garg et al. 2024) that LoTLIP evaluates on, a data.jsonl in each."""

_FORMS = (
    "a .txt (one text a line), a .jsonl (one object a line), a .json (a list), "
    f"or a folder with {', '.join(IIW_PARTS)}"
)


@dataclass(frozen=True)
class Texts:
    """Texts and where they came from.

    `names[i]` says where text i stands (file and line), `skipped` what was left out, by reason,
    `source` the files, the key and the hash of the texts; JSON-able and free of absolute paths.
    """

    name: str
    texts: list[str]
    names: list[str]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(path: str | os.PathLike[str], key: str | None = None) -> Texts:
    """Read the texts of a file or folder.

    - `.txt`: one text a line.
    - `.jsonl`: one object a line; its text is under `key`, or if that is None under the first of
      `KEYS` that the first object has. A line may also be a JSON string.
    - `.json`: a list of such objects or strings, or an object whose "annotations" is that list
      (COCO's caption files).
    - a folder in ImageInWords' layout: `IIW-400/data.jsonl`, `DCI_Test/...`, `DOCCI_Test/...`; or
      a folder with a data.jsonl.

    Empty and missing texts (null, NaN) are left out, counted and named in `skipped`, as are parts
    of ImageInWords that are not there. Raises LabError for a file that is missing, empty, not
    UTF-8, of another form, or without any text.
    """
    path = Path(path)
    files, skipped = _files(path)
    texts, names, empty, keys = [], [], [], {}
    for name, file in files.items():
        keys[name], entries = _read_file(file, key)
        for place, text in entries:
            if text.strip():
                texts.append(text)
                names.append(name + place)
            else:
                empty.append(name + place)
    if empty:
        skipped["empty caption"] = empty
    if not texts:
        count = f": all {len(empty)} entries are empty" if empty else ""
        raise LabError(f"{path} holds no text{count}. Expected {_FORMS}.")
    digest = hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()
    source = {"files": list(files), "keys": keys, "hash": f"sha256:{digest}"}
    return Texts(path.resolve().name or str(path), texts, names, skipped, source)


def _files(path: Path) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The files to read, by the name that places in them go by, and what is not there."""
    if path.is_file():
        return {path.name: path}, {}
    if not path.is_dir():
        raise LabError(f"There is no file or folder {path}. Expected {_FORMS}.")
    parts = {f"{part}/data.jsonl": path / part / "data.jsonl" for part in IIW_PARTS}
    found = {name: file for name, file in parts.items() if file.is_file()}
    if found:
        missing = [name for name in parts if name not in found]
        return found, {"part not there": missing} if missing else {}
    if (path / "data.jsonl").is_file():
        return {"data.jsonl": path / "data.jsonl"}, {}
    raise LabError(f"The folder {path} has none of {', '.join(parts)}. Expected {_FORMS}.")


def _read_file(path: Path, key: str | None) -> tuple[str | None, list[tuple[str, str]]]:
    """The key that was read (None for plain text) and the entries: place in the file, text."""
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl", ".json"):
        raise LabError(f"Do not know how to read {path}. Expected {_FORMS}.")
    content = read_text(path)
    if suffix == ".txt":
        lines = content.removesuffix("\n").split("\n") if content else []
        return None, [(f":{number}", line) for number, line in enumerate(lines, start=1)]
    records = _json_lines(path, content) if suffix == ".jsonl" else _json_list(path, content)
    if key is None:
        first = next((record for _, record in records if isinstance(record, dict)), {})
        key = next((known for known in KEYS if known in first), None)
    return key, [(place, _text_of(record, key, f"{path}{place}")) for place, record in records]


def _json_lines(path: Path, content: str) -> list[tuple[str, Any]]:
    return [
        (f":{number}", parse_json(line, f"{path}:{number}", allow_nan=True))
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]


def _json_list(path: Path, content: str) -> list[tuple[str, Any]]:
    records = parse_json(content, str(path), allow_nan=True) if content.strip() else []
    place = ""
    if isinstance(records, dict) and "annotations" in records:
        records, place = records["annotations"], ".annotations"
    if not isinstance(records, list):
        raise LabError(
            f"{path} holds a JSON {json_kind(records)}. Expected a list of texts or of objects, or "
            'an object with such a list under "annotations".'
        )
    return [(f"{place}[{i}]", record) for i, record in enumerate(records)]


def _text_of(record: Any, key: str | None, where: str) -> str:
    if isinstance(record, str):
        text = record
    elif not isinstance(record, dict):
        raise LabError(f"{where} is a JSON {json_kind(record)}. Expected an object or a string.")
    elif key not in record:
        raise LabError(f"{where} {_no_text(record, key)}")
    else:
        # pandas writes NaN for a text that is missing.
        missing = record[key] is None or record[key] != record[key]
        text = "" if missing else record[key]
    if not isinstance(text, str):
        raise LabError(f'{where} has a JSON {json_kind(text)} under "{key}". Expected a string.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise LabError(f"{where} holds half a surrogate pair, which is no text.") from None
    return text


def _no_text(record: dict[str, Any], key: str | None) -> str:
    if not record:
        return "is an empty object, without a text."
    if key is not None:
        return f'has nothing under "{key}". {suggest(key, record)}'
    has = ", ".join(list(record)[:8])
    return f"has none of the keys {', '.join(KEYS)}. It has {has}: name one with key=."
