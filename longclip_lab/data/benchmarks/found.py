"""What the files of a benchmark list, before any picture is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data.captions import read_text
from longclip_lab.data.usable import Defects, check_inside, check_text
from longclip_lab.errors import LabError

TWICE, EMPTY, CAPTIONLESS = "listed twice", "empty caption", "picture without a caption"
TOO_FEW = "class with too few pictures"


@dataclass
class Found:
    """The pictures that files list, each with its texts or its label, and what is wrong.

    `texts` and `labels` go by the picture's path below the benchmark's folder. `exact` are folders
    that should hold nothing but the benchmark. `arrays` are pictures that are no files [N, H, W,
    3]; then `labels` go by their numbers. `class_names` are the classes that the folders have.
    """

    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    defects: Defects = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    """What was read, in words, for a report."""
    exact: dict[str, Callable[[str], bool]] = field(default_factory=dict)
    arrays: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def add(self, picture: str, texts: Iterable[str], where: str) -> None:
        """Note a picture with its texts; one that is known already or has an empty text is named.

        Raises LabError for a path that leads out of the folder and for broken Unicode.
        """
        check_inside(picture, where)
        texts = list(texts)
        for text in texts:
            check_text(text, where)
        if picture in self.texts:
            self.note(TWICE, f"{picture} ({where})")
            return
        kept = [text for text in texts if text]
        if len(kept) < len(texts):
            self.note(EMPTY, f"{picture} ({where})")
        if not texts:
            self.note(CAPTIONLESS, f"{picture} ({where})")
        if kept:
            self.texts[picture] = kept

    def note(self, reason: str, name: str) -> None:
        self.defects.setdefault(reason, []).append(name)


def check_folder(path: Path) -> None:
    """Raise LabError if a file stands where a folder should be."""
    if not path.is_dir():
        raise LabError(f"{path} is a file, not a folder: is it an archive? Unpack it.")


def check_file(path: Path) -> None:
    """Raise LabError if a folder stands where a file should be."""
    if not path.is_file():
        raise LabError(f"{path} is a folder; expected a file of that name.")


def text_under(row: dict[str, Any], key: str, where: str) -> str:
    """The text that an object has under a key. Raises LabError if it has none.

    A null counts as empty: it will be named as an empty caption.
    """
    value = "" if key in row and row[key] is None else row.get(key)
    if not isinstance(value, str):
        has = ", ".join(map(repr, list(row)[:8]))
        raise LabError(f"{where}: expected a text under {key!r}. It has {has}.")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises LabError for anything else, with the line."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise LabError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}. "
            "Is the file complete?"
        ) from None
    except RecursionError:
        raise LabError(f"{path} is nested too deeply to be a list of captions.") from None
    if not isinstance(content, dict):
        raise LabError(f"{path} holds a JSON {type(content).__name__}; expected an object.")
    return content
