"""Captions on their way back into training data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data import Pairs, ShardSet
from longclip_lab.data.shards.reading import NO_CAPTION
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write
from longclip_lab.recaptioning.pictures import picture_keys
from longclip_lab.recaptioning.records import Line, read_lines, read_record


def with_captions(data: Any, *folders: str | os.PathLike[str]) -> Pairs | ShardSet:
    """The pairs, or shards, with the captions in these folders (one each) as their `captioners`.

    LoTLIP trains on a raw text and several long ones a picture; `long` becomes the first folder's.
    Captioners that the data had are kept. A picture is found by the end of its path, so it does not
    matter where the data lie now. Pictures without a caption from one of the folders (broken,
    empty) are left out, counted and named in `skipped`; those of shards when they are read.

    Raises LabError for captions of other pictures, of a world drawn otherwise or of other shards,
    by a captioner that is already there, and if no picture is left.
    """
    if not folders:
        raise LabError("Say which folders of captions to add.")
    if isinstance(data, ShardSet):
        return _with_captions_of_shards(data, folders)
    captioners = [dict(by) for by in getattr(data, "captioners", None) or [{}] * len(data)]
    names: dict[str, list[str]] = {}
    complete = np.ones(len(data), dtype=bool)
    for folder in folders:
        found = _captions_of(data, folder)
        for index, line in enumerate(found):
            if line is None or not line.caption:
                complete[index] = False
            elif line.captioner in captioners[index]:
                raise _twice(line.captioner)
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
    Raises LabError if nothing is left, and for pictures that are no files.
    """
    settings = read_record(folder)["settings"]
    check_files(settings["data"].get("dataset"))
    prompt = settings["asking"]["prompt"]
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


def check_files(dataset: str | None) -> None:
    """Raise LabError for pictures that ShareGPT4V's layout cannot name."""
    if dataset in ("world", "shards"):
        raise LabError(
            f"ShareGPT4V's layout names picture files, and those of {dataset} are none. Bring "
            "their captions into training with recaptioning.with_captions."
        )


def _captions_of(data: Any, folder: str | os.PathLike[str]) -> list[Line | None]:
    """The line of each picture of `data`."""
    lines = {line.key: line for line in read_lines(folder)}
    if isinstance(data.images, np.ndarray):
        _check_same(data, folder)
        return [lines.get(key) for key in picture_keys(data.images)]
    keys = [_key(Path(image), lines) for image in data.images]
    claimed = [key for key in keys if key is not None]
    if len(set(claimed)) < len(claimed):
        twice = next(key for key in claimed if claimed.count(key) > 1)
        raise LabError(f"{folder}: the caption of {twice} would go to two pictures of {data.name}.")
    return [None if key is None else lines[key] for key in keys]


def _with_captions_of_shards(data: ShardSet, folders: Sequence[str | os.PathLike[str]]) -> ShardSet:
    captions: dict[str, dict[str, str]] = {}
    for folder in folders:
        _check_same(data, folder)
        for line in read_lines(folder):
            by_captioner = captions.setdefault(line.key, {})
            if line.captioner in by_captioner or line.captioner in data.captioners:
                raise _twice(line.captioner)
            by_captioner[line.captioner] = line.caption
    return data.with_captions(captions, [_facts(folder) for folder in folders])


def _check_same(data: Any, folder: str | os.PathLike[str]) -> None:
    """Keys that are numbers fit any data: the hash says whether these are meant."""
    told = read_record(folder)["settings"]["data"].get("hash")
    if told != data.source.get("hash"):
        raise LabError(
            f"{folder} describes other pictures than {data.name} (hash {told}, expected "
            f"{data.source.get('hash')}). Give the same shards, or draw the world with the same "
            "size and seed."
        )


def _twice(captioner: str) -> LabError:
    return LabError(f"There are two sets of captions by {captioner}; write one under another name.")


def _key(path: Path, lines: dict[str, Line]) -> str | None:
    """The longest end of a picture's path that is a key."""
    ends = ("/".join(path.parts[start:]) for start in range(len(path.parts)))
    return next((end for end in ends if end in lines), None)


def _facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    settings = read_record(folder)["settings"]
    return {key: settings[key] for key in ("captioner", "model", "weights", "asking")}


def _at(values: Any, kept: np.ndarray) -> list[Any]:
    return [values[index] for index in kept]
