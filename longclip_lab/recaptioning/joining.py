"""Captions on their way back into training data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data import Pairs
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write
from longclip_lab.recaptioning.pictures import picture_keys
from longclip_lab.recaptioning.records import Line, read_lines, read_record

NO_CAPTION = "no new caption"


def with_captions(data: Any, *folders: str | os.PathLike[str]) -> Pairs:
    """The pairs with the captions in these folders as their `captioners`, one folder for each.

    LoTLIP trains on a raw text and several long ones a picture; `long` becomes the first folder's.
    Captioners that the data had are kept. A picture is found by the end of its path, so it does not
    matter where the data lie now. Pictures without a caption from one of the folders (broken,
    empty) are left out, counted and named in `skipped`.

    Raises LabError for captions of other pictures, of a world drawn otherwise, by a captioner that
    is already there, and if no picture is left.
    """
    if not folders:
        raise LabError("Say which folders of captions to add.")
    captioners = [dict(by) for by in getattr(data, "captioners", None) or [{}] * len(data)]
    names: dict[str, list[str]] = {}
    complete = np.ones(len(data), dtype=bool)
    for folder in folders:
        found = _captions_of(data, folder)
        for index, line in enumerate(found):
            if line is None or not line.caption:
                complete[index] = False
            elif line.captioner in captioners[index]:
                raise LabError(f"There are two sets of captions by {line.captioner}; rename one.")
            else:
                captioners[index][line.captioner] = line.caption
    kept = np.flatnonzero(complete)
    if not len(kept):
        raise LabError(f"{' and '.join(map(str, folders))}: no caption of {data.name}'s pictures.")
    missing = np.flatnonzero(~complete)
    if len(missing):
        keys = picture_keys(data.images)
        names = {NO_CAPTION: [keys[index] for index in missing]}
    first = read_record(folders[0])["settings"]["captioner"]
    return Pairs(
        name=data.name,
        images=data.images[kept] if isinstance(data.images, np.ndarray) else _at(data.images, kept),
        short=_at(data.short, kept),
        long=[captioners[index][first] for index in kept],
        captions=_at(data.captions, kept),
        skipped={**data.skipped, **names},
        source={**data.source, "recaptioned": [_facts(folder) for folder in folders]},
        captioners=_at(captioners, kept),
    )


def to_sharegpt4v(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write a folder's captions as ShareGPT4V publishes its own; returns how many.

    A JSON list of {"id", "image", "conversations"} whose pictures are named by their keys;
    `data.recaptioned(root, "sharegpt4v", table=path)` reads it. Empty captions are left out.
    Raises LabError if nothing is left.
    """
    prompt = read_record(folder)["settings"]["asking"]["prompt"]
    entries = [
        {
            "id": line.key,
            "image": line.key,
            "conversations": [
                {"from": "human", "value": f"<image>\n{prompt}"},
                {"from": "gpt", "value": line.caption},
            ],
        }
        for line in read_lines(folder)
        if line.caption
    ]
    if not entries:
        raise LabError(f"{folder} holds no caption to write.")
    atomic_write(path, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    return len(entries)


def _captions_of(data: Any, folder: str | os.PathLike[str]) -> list[Line | None]:
    """The line of each picture of `data`."""
    lines = {line.key: line for line in read_lines(folder)}
    settings = read_record(folder)["settings"]
    if isinstance(data.images, np.ndarray):
        told = settings["data"].get("hash")
        if told != data.source.get("hash"):
            raise LabError(
                f"{folder} describes other pictures than {data.name} (hash {told}, expected "
                f"{data.source.get('hash')}). Draw the world with the same size and seed."
            )
        return [lines.get(key) for key in picture_keys(data.images)]
    keys = [_key(Path(image), lines) for image in data.images]
    claimed = [key for key in keys if key is not None]
    if len(set(claimed)) < len(claimed):
        twice = next(key for key in claimed if claimed.count(key) > 1)
        raise LabError(f"{folder}: the caption of {twice} would go to two pictures of {data.name}.")
    return [None if key is None else lines[key] for key in keys]


def _key(path: Path, lines: dict[str, Line]) -> str | None:
    """The longest end of a picture's path that is a key."""
    ends = ("/".join(path.parts[start:]) for start in range(len(path.parts)))
    return next((end for end in ends if end in lines), None)


def _facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    settings = read_record(folder)["settings"]
    return {key: settings[key] for key in ("captioner", "model", "weights", "asking")}


def _at(values: Any, kept: np.ndarray) -> list[Any]:
    return [values[index] for index in kept]
