"""Captions on their way back into training data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data import Pairs, ShardSet
from longclip_lab.data.shards.reading import NO_CAPTION
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write, to_json
from longclip_lab.recaptioning.pictures import picture_keys
from longclip_lab.recaptioning.records import Line, read_lines, read_record


def with_captions(data: Any, *folders: str | os.PathLike[str]) -> Pairs | ShardSet:
    """The pairs, or shards, with the captions in these folders (one each) as their `captioners`.

    LoTLIP trains on a raw text and several long ones a picture; `long` becomes the first new one.
    Captioners that the data had are kept. A picture is found by the end of its path, so it does not
    matter where the data lie now. Pictures without any new caption (broken, empty) are left out,
    counted and named in `skipped`; those of shards when they are read. `source` says how many
    pictures each captioner has described.

    Raises LabError for captions of other pictures, of a world drawn otherwise or of other shards,
    by a captioner that is already there, and if no picture is left.
    """
    if not folders:
        raise LabError("Say which folders of captions to add.")
    if isinstance(data, ShardSet):
        return _with_captions_of_shards(data, folders)
    before = [dict(by) for by in getattr(data, "captioners", None) or [{}] * len(data)]
    new: list[dict[str, str]] = [{} for _ in range(len(data))]
    for folder in folders:
        for index, line in enumerate(_captions_of(data, folder)):
            if line is not None and line.caption:
                _add(line, new[index], before[index])
    kept = np.flatnonzero([bool(by_captioner) for by_captioner in new])
    if not len(kept):
        raise LabError(f"{' and '.join(map(str, folders))}: no caption of {data.name}'s pictures.")
    missing = sorted(set(range(len(data))) - set(kept.tolist()))
    names = _at(picture_keys(data.images), missing)
    return Pairs(
        name=data.name,
        images=data.images[kept] if isinstance(data.images, np.ndarray) else _at(data.images, kept),
        short=_at(data.short, kept),
        long=[next(iter(new[index].values())) for index in kept],
        captions=_at(data.captions, kept),
        skipped={**data.skipped, **({NO_CAPTION: names} if names else {})},
        source={**data.source, "recaptioned": _facts(folders, new)},
        captioners=[before[index] | new[index] for index in kept],
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
    atomic_write(path, to_json(entries, ensure_ascii=False, indent=1) + "\n")
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
            if line.caption:
                _add(line, captions.setdefault(line.key, {}), data.captioners)
    return data.with_captions(captions, _facts(folders, captions.values()))


def _check_same(data: Any, folder: str | os.PathLike[str]) -> None:
    """Keys that are numbers fit any data: the hash says whether these are meant."""
    told = read_record(folder)["settings"]["data"].get("hash")
    if told != data.source.get("hash"):
        raise LabError(
            f"{folder} describes other pictures than {data.name} (hash {told}, expected "
            f"{data.source.get('hash')}). Give the same shards, or draw the world with the same "
            "size and seed."
        )


def _add(line: Line, new: dict[str, str], before: Collection[str]) -> None:
    if line.captioner in new or line.captioner in before:
        raise LabError(
            f"There are two sets of captions by {line.captioner}; write one under another name."
        )
    new[line.captioner] = line.caption


def _key(path: Path, lines: dict[str, Line]) -> str | None:
    """The longest end of a picture's path that is a key."""
    ends = ("/".join(path.parts[start:]) for start in range(len(path.parts)))
    return next((end for end in ends if end in lines), None)


def _facts(
    folders: Sequence[str | os.PathLike[str]], new: Iterable[dict[str, str]]
) -> list[dict[str, Any]]:
    """What `source` says of new captions: by whom, and of how many pictures."""
    pictures = Counter(who for by_captioner in new for who in by_captioner)
    settings = [read_record(folder)["settings"] for folder in folders]
    return [
        {key: one[key] for key in ("captioner", "model", "weights", "asking")}
        | {"pictures": pictures[one["captioner"]]}
        for one in settings
    ]


def _at(values: Any, indices: Iterable[int]) -> list[Any]:
    return [values[index] for index in indices]
