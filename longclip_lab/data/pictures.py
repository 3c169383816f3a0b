"""Pictures on disk: read once when a data set is opened, to know that they can be decoded."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
MISSING = "missing"


@dataclass(frozen=True)
class PictureCheck:
    """What one picture file turned out to be: its SHA-256, or what is wrong with it."""

    path: Path
    digest: str = ""
    defect: str = ""


def check_presence(path: Path) -> PictureCheck:
    """Say whether `path` is a file, without opening it."""
    return PictureCheck(path, defect="" if path.is_file() else MISSING)


def check_picture(path: Path) -> PictureCheck:
    """Read `path` and decode it to the last byte.

    Pillow's own `verify` does not look at JPEG data, so a truncated photograph would pass it.
    JPEG files are decoded at an eighth of their size, which still reads every byte and takes a
    few milliseconds.
    """
    if not path.is_file():
        return check_presence(path)
    content = path.read_bytes()
    found = decoded(content, draft=True)
    if isinstance(found, str):
        return PictureCheck(path, defect=found)
    return PictureCheck(path, digest=hashlib.sha256(content).hexdigest())


def decoded(content: bytes, draft: bool = False) -> Image.Image | str:
    """The picture in a file's bytes, in RGB, or what is wrong with it; with `draft`, a small one of
    which every byte was read all the same."""
    if not content:
        return "empty file"
    try:
        with Image.open(io.BytesIO(content)) as image:
            if not draft:
                return image.convert("RGB")
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return image
    except UnidentifiedImageError:
        return "not a picture"
    except Image.DecompressionBombError:
        return "too many pixels"
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        # Pillow's decoders report damaged data under any of these.
        return f"damaged: {error}"


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


def picture_names(folder: Path) -> list[str]:
    """The names of the picture files in `folder`, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
