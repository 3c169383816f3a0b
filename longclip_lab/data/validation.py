"""Validate that images exist and decode, and that captions are text."""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from tqdm import tqdm

from longclip_lab.errors import LabError
from longclip_lab.files import readable
from longclip_lab.images import ImageError, decode_image

# --- Images on disk: read once when a data set is opened, to know that they can be decoded ---

MISSING = "missing picture"
NAMED_IN_ERROR = 5

Defects = dict[str, list[str]]


class ImageCheck(NamedTuple):
    """What an image file turned out to be: its SHA-256, or what is wrong with it."""

    digest: str = ""
    defect: str = ""


def check_image(path: Path, decode: bool = True) -> ImageCheck:
    """Whether `path` is a file and, with `decode`, one that can be decoded to the last byte."""
    # A name that no file can have is missing too: os.path, unlike pathlib, says so.
    if not os.path.isfile(path):
        return ImageCheck(defect=MISSING)
    if not decode:
        return ImageCheck()
    try:
        content = path.read_bytes()
        decode_image(content, draft=True)
    except ImageError as error:
        return ImageCheck(defect=str(error))
    except OSError as error:
        return ImageCheck(defect=f"cannot be read: {error.strerror}")
    return ImageCheck(digest=hashlib.sha256(content).hexdigest())


def usable_images(
    folder: Path, names: list[str], verify: bool, defects: Defects, progress: bool
) -> dict[str, str]:
    """The images that can be used, in order, with their SHA-256 (empty unless `verify`).

    Missing and, with `verify`, broken ones are added to `defects` by name.
    """
    digests: dict[str, str] = {}
    # A few threads, for decoding releases Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checks = pool.map(lambda name: check_image(folder / name, verify), names)
        checks = list(tqdm(checks, "checking pictures", len(names), disable=not progress))
    for name, found in zip(names, checks, strict=True):
        if not found.defect:
            digests[name] = found.digest
        elif found.defect == MISSING:
            defects.setdefault(MISSING, []).append(readable(name))
        else:
            broken = defects.setdefault("broken picture", [])
            broken.append(f"{readable(name)} ({found.defect})")
    return digests


def format_errors(listing: Path, defects: Defects) -> str:
    """One message that counts every kind of defect and names the first few of each."""
    return (
        f"{listing} and its pictures do not fit together. {summarize(defects)}. Repair them, "
        "or leave them out, counted and named, with skip_bad=True (--skip-bad)."
    )


def summarize(defects: Defects) -> str:
    """Every kind of defect counted, with the first few names.

    >>> summarize({"empty caption": ["1.txt", "592.txt"]})
    '2 x empty caption: 1.txt, 592.txt'
    """
    parts = []
    for reason, names in defects.items():
        more = f" and {len(names) - NAMED_IN_ERROR} more" if len(names) > NAMED_IN_ERROR else ""
        parts.append(f"{len(names)} x {reason}: {', '.join(names[:NAMED_IN_ERROR])}{more}")
    return "; ".join(parts)


def content_hash(digests: dict[str, str], texts: list[list[str]]) -> str:
    """SHA-256 over names, pictures' digests and texts, in order."""
    whole = hashlib.sha256()
    for (name, digest), of_picture in zip(digests.items(), texts, strict=True):
        whole.update("\0".join([readable(name), digest, *of_picture, "\n"]).encode())
    return f"sha256:{whole.hexdigest()}"


def inside(name: str, where: str) -> str:
    """The name of a picture below its folder, in its plainest form: "./a//0.png" is "a/0.png".

    A caption file is downloaded data: its names must not reach other files. Raises LabError for a
    name that leads out of the folder, and for broken Unicode.
    """
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    parts = {*windows.parts, *posix.parts}
    if ".." in parts or posix.is_absolute() or windows.anchor or "\0" in name:
        raise LabError(
            f"{where} has the file name {name!r}, which leads out of the picture folder; "
            "expected a plain name such as 000000000139.jpg."
        )
    if not is_unicode(name):
        raise LabError(f"{where} has a file name that is not valid Unicode: {name!r}.")
    return posix.as_posix() if posix.parts else ""


EMPTY = "empty caption"
NO_TEXT = "caption that is no text"
NO_UNICODE = "caption with half a surrogate pair, which is no text"


def caption_defect(value: Any) -> str:
    """What is wrong with a caption as a file has it: one of the reasons above, or "" for nothing.

    Null and NaN, which pandas writes for a missing one, count as empty, as does a text of which
    nothing would be seen.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return EMPTY
    if not isinstance(value, str):
        return NO_TEXT
    if not is_unicode(value):
        return NO_UNICODE
    seen = (character.isprintable() and not character.isspace() for character in value)
    return "" if any(seen) else EMPTY


def is_unicode(text: str) -> bool:
    r"""Whether a text is free of halves of surrogate pairs, which JSON can spell and UTF-8 cannot.

    >>> is_unicode("caf\u00e9"), is_unicode("\ud83d")
    (True, False)
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
