"""Pictures on disk: read once when a data set is opened, to know that they can be decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from longclip_lab.images import ImageError, decode_image

MISSING = "missing"


@dataclass(frozen=True)
class PictureCheck:
    """What one picture file turned out to be: its SHA-256, or what is wrong with it."""

    path: Path
    digest: str = ""
    defect: str = ""


def check_presence(path: Path) -> PictureCheck:
    """Say whether `path` is a file, without opening it."""
    # A name that no file can have is missing too: os.path, unlike pathlib, says so.
    return PictureCheck(path, defect="" if os.path.isfile(path) else MISSING)


def check_picture(path: Path) -> PictureCheck:
    """Read `path` and decode it to the last byte, without making the whole picture."""
    if (found := check_presence(path)).defect:
        return found
    try:
        content = path.read_bytes()
        decode_image(content, draft=True)
    except ImageError as error:
        return PictureCheck(path, defect=str(error))
    except OSError as error:
        return PictureCheck(path, defect=f"cannot be read: {error.strerror}")
    return PictureCheck(path, digest=hashlib.sha256(content).hexdigest())


def check_pictures(
    paths: Sequence[Path],
    check: Callable[[Path], PictureCheck] = check_picture,
    progress: bool = False,
) -> list[PictureCheck]:
    """The `check` of every path, in order, on a few threads (decoding releases the lock)."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        checks = pool.map(check, paths)
        return list(tqdm(checks, "checking pictures", len(paths), disable=not progress))
