"""Rows of an array that are made once, run by run, and are still there after an interruption.

FOLDER/features.json       whose rows these are
FOLDER/features.npy        the rows, memory-mapped
FOLDER/features.npy.part   the same while they are being made
FOLDER/done.npy            which runs of rows are made
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write, leftovers, read_json_object, to_json

RECORD, FEATURES, PART, DONE = "features.json", "features.npy", "features.npy.part", "done.npy"


def claim(home: Path, identity: Mapping[str, Any], meaning: Mapping[str, str], run: int) -> None:
    """Make `home` the place of these rows; leave in it only what can be gone on with.

    `identity` is JSON-able and has the array's "shape" and "dtype"; `meaning` says what each of its
    entries tells apart ("another image tower"). `run` rows are made at a time.
    Raises LabError if `home` holds rows of anything else, or something that is no rows.
    """
    record = home / RECORD
    if home.exists() and not home.is_dir():
        raise LabError(f"{home} is a file; stored features need a folder.")
    if not record.exists():
        if home.exists() and set(home.iterdir()) - set(leftovers(home)):
            raise LabError(f"{home} is not empty and holds no stored features; give another.")
        atomic_write(record, to_json(identity, indent=2) + "\n")
    try:
        found = read_json_object(record)
    except LabError as error:
        raise LabError(f"{error} Delete the folder, or give another.") from None
    for key, what in meaning.items():
        if found.get(key) != identity[key]:
            raise LabError(
                f"{home} holds features of {what} ({_brief(found.get(key))} there, "
                f"{_brief(identity[key])} now); give another folder, or delete it."
            )
    shape, dtype = tuple(identity["shape"]), np.dtype(identity["dtype"])
    if _opens(home / FEATURES, shape, dtype):
        return
    (home / FEATURES).unlink(missing_ok=True)
    runs = -(-shape[0] // run)
    if _opens(home / PART, shape, dtype) and _opens(home / DONE, (runs,), np.dtype(bool)):
        return
    # `done` goes first and comes last: where it is, the rows that it speaks of are.
    (home / DONE).unlink(missing_ok=True)
    np.lib.format.open_memmap(home / PART, "w+", dtype, shape).flush()
    np.lib.format.open_memmap(home / DONE, "w+", np.dtype(bool), (runs,)).flush()


def is_whole(home: Path) -> bool:
    """Whether all rows of a claimed store are made."""
    return (home / FEATURES).exists()


def missing_runs(home: Path) -> list[int]:
    """Numbers of the runs that a claimed store, not whole yet, still lacks."""
    return np.flatnonzero(~np.load(home / DONE)).tolist()


def fill(home: Path, run: int, made: Iterable[tuple[int, np.ndarray]]) -> None:
    """Store (number of a run, its rows) as they come; each is safe as soon as it is stored."""
    features = np.load(home / PART, mmap_mode="r+")
    done = np.load(home / DONE, mmap_mode="r+")
    for number, rows in made:
        features[number * run : (number + 1) * run] = rows
        features.flush()  # before it is said to be there
        done[number] = True
        done.flush()


def finish(home: Path) -> None:
    """Give the rows their final name. Raises LabError if some are missing."""
    if is_whole(home):  # another process that made the same ones was done first
        return
    if not np.load(home / DONE).all():
        raise LabError(f"Not all features in {home} were made; run the same command again.")
    (home / PART).replace(home / FEATURES)
    (home / DONE).unlink()


def read(home: Path) -> np.ndarray:
    """The rows of a whole store, memory-mapped, read-only."""
    return np.load(home / FEATURES, mmap_mode="r")


def _brief(value: Any) -> str:
    text = str(value)
    return text[:15] + ".." if text.startswith("sha256:") else text


def _opens(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether `path` is a whole array of this form; one that was cut short is not."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would also open a zip
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, TokenError):
        return False  # numpy reads the head of an array as Python reads a program
    return array.shape == shape and array.dtype == dtype
