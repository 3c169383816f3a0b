"""The pictures of a folder, and what else lies there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longclip_lab.data.pictures import SUFFIXES
from longclip_lab.errors import LabError

PICTURES = SUFFIXES | {".jfif", ".tif", ".tiff", ".avif"}
CLOSED = {".heic", ".heif", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
"""Pictures that Pillow does not read: told apart from other files, as the reader will miss them."""

HIDDEN, OTHER = "hidden", "no picture by its name"
CLOSED_FORMAT = "a format that is not read; save as JPEG or PNG"
LINKED, UNREADABLE = "linked folder, not followed", "cannot be opened"


@dataclass(frozen=True)
class PictureFile:
    """A picture's name relative to the folder (with "/"), its path, size in bytes and time of the
    last change in nanoseconds."""

    name: str
    path: Path
    size: int
    changed: int


@dataclass(frozen=True)
class Listing:
    """The picture files of a folder by name, and what was left out: {reason: names}."""

    root: Path
    files: tuple[PictureFile, ...]
    left_out: dict[str, list[str]]


def list_pictures(folder: str | os.PathLike[str], ignore: Path | None = None) -> Listing:
    """Every picture in `folder` and the folders below it, known by its suffix.

    Hidden files and folders (".name") and links to folders are left out; so is, without a word,
    `ignore`, the cache's own folder. Whether a file really is a picture is seen when it is read.

    Raises LabError if there is no such folder.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise LabError(f"There is no folder {root}. Give the folder that holds your pictures.")
    if not root.is_dir():
        raise LabError(
            f"Expected a folder of pictures, {root} is a file. If it is an archive, unpack it."
        )
    ignored = None if ignore is None else ignore.resolve()
    files: list[PictureFile] = []
    left_out: dict[str, list[str]] = {}
    for path, reason in _walk(root, left_out, root, ignored):
        name = path.relative_to(root).as_posix()
        if not reason:
            try:
                facts = path.stat()
            except OSError:  # a link to nothing, or gone since the folder was read
                facts = None
            if facts is not None and stat.S_ISREG(facts.st_mode):
                files.append(PictureFile(name, path, facts.st_size, facts.st_mtime_ns))
            else:  # a pipe would be waited for
                reason = UNREADABLE
        if reason:
            left_out.setdefault(reason, []).append(name)
    files.sort(key=lambda file: file.name)
    return Listing(root, tuple(files), {why: sorted(left_out[why]) for why in sorted(left_out)})


def _walk(
    folder: Path, left_out: dict[str, list[str]], root: Path, ignored: Path | None
) -> Iterator[tuple[Path, str]]:
    """(path, why it is left out or "") of everything below `folder` that is no folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        left_out.setdefault(UNREADABLE, []).append(f"{folder.relative_to(root).as_posix()}/")
        return
    for entry in entries:
        path = Path(entry.path)
        is_folder = _is_folder(entry)
        if is_folder and ignored is not None and path.resolve() == ignored:
            continue
        if entry.name.startswith("."):
            yield path, HIDDEN
        elif is_folder and entry.is_symlink():
            yield path, LINKED
        elif is_folder:
            yield from _walk(path, left_out, root, ignored)
        else:
            yield path, _left_out(path.suffix.lower())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _left_out(suffix: str) -> str:
    if suffix in PICTURES:
        return ""
    return CLOSED_FORMAT if suffix in CLOSED else OTHER
