"""What the files of a benchmark list, before any picture is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data.usable import EMPTY, Defects, caption_defect, inside
from longclip_lab.errors import LabError

TWICE, CAPTIONLESS, NAMELESS = "listed twice", "picture without a caption", "no picture's name"
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

    def add(
        self, picture: str, captions: Iterable[Any], process: Callable[[str], str], where: str
    ) -> None:
        """Note a picture with its captions, as `process` makes texts of them.

        One that is known already, and captions that are empty or no texts, are named instead.
        Raises LabError for a path that leads out of the folder.
        """
        if not picture:
            self.note(NAMELESS, where)
            return
        picture = inside(picture, where)
        captions = list(captions)
        if picture in self.texts:
            self.note(TWICE, f"{picture} ({where})")
            return
        kept, reasons = [], {}
        for caption in captions:
            defect = caption_defect(caption)
            text = "" if defect else process(caption)
            if text:
                kept.append(text)
            else:
                reasons[defect or EMPTY] = f"{picture} ({where})"
        for reason, name in reasons.items():
            self.note(reason, name)
        if not captions:
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


def value_under(row: dict[str, Any], key: str, where: str) -> Any:
    """What an object has under a key, whatever it is. Raises LabError if it has no such key."""
    if key not in row:
        has = ", ".join(map(repr, list(row)[:8]))
        raise LabError(f"{where}: expected a text under {key!r}. It has {has}.")
    return row[key]


def text_under(row: dict[str, Any], key: str, where: str) -> str:
    """The text that an object has under a key; "" for null and NaN. Raises LabError otherwise."""
    value = value_under(row, key, where)
    if caption_defect(value) == EMPTY:
        return ""
    if not isinstance(value, str):
        raise LabError(f"{where}: expected a text under {key!r}, got {value!r:.60}.")
    return value
