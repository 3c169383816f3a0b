"""Pictures by key, in runs of which each becomes one file of captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longclip_lab.data import ShardSet
from longclip_lab.data.shards import Broken, Sample
from longclip_lab.errors import COUNT, LabError
from longclip_lab.files import readable
from longclip_lab.images import READING, ImageError, decode_image, list_pictures
from longclip_lab.models.pictures import pictures_hash

Content = Path | bytes | np.ndarray | str
"""A picture file, its bytes, or uint8 values [H, W, 3]; or, as a text, why there is none."""

PER_FILE = 1000


@dataclass(frozen=True)
class Run:
    """Pictures whose captions are written together, under this `name`."""

    name: str
    pictures: Callable[[], Iterator[tuple[str, Content]]]


@dataclass(frozen=True)
class PictureRuns:
    """All pictures of a data set, in a fixed order. `source` says which they are (JSON-able),
    `skipped` names what the data set was opened without, by reason."""

    name: str
    source: dict[str, Any]
    runs: list[Run]
    skipped: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder and the folders below it, without any text."""

    name: str
    images: list[Path]
    source: dict[str, Any]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def open_folder(root: str | os.PathLike[str]) -> Folder:
    """Every picture file below `root` (`images.list_pictures`); `skipped` names what else is there.

    Raises LabError if there is no such folder, or no picture in it.
    """
    listing = list_pictures(root)
    images = sorted(file.path for file in listing.files)
    if not images:
        raise LabError(f"{root} holds no picture (JPEG, PNG, WebP, ...).")
    source = {"dataset": "folder", "pictures": len(images), "hash": pictures_hash(images)}
    return Folder("folder", images, source, listing.left_out)


def picture_runs(
    data: Any, root: str | os.PathLike[str] | None = None, per_file: int = PER_FILE
) -> PictureRuns:
    """The pictures of `data` (`Pairs`, the world, a `Folder`), `per_file` to a file; or of shards.

    A picture on disk has its path below `root` as key, or below the folder that all of them share;
    a drawn one its number, one in a shard the shard's own key. Raises LabError for a picture
    outside `root`.
    """
    if isinstance(data, ShardSet):
        runs = [_shard_run(data, number) for number in range(len(data.shards))]
        read = {} if data.pictures == "values" else {"images": READING}
        return PictureRuns(data.name, {**data.source, **read}, runs, data.skipped)
    COUNT.check("per_file", per_file)
    if len(data.images) == 0:
        raise LabError(f"{data.name} holds no picture.")
    keys = picture_keys(data.images, root)
    pictures = list(zip(keys, data.images, strict=True))
    parts = (pictures[start : start + per_file] for start in range(0, len(pictures), per_file))
    runs = [Run(f"{n:06d}", lambda part=part: iter(part)) for n, part in enumerate(parts)]
    read = {} if isinstance(data.images, np.ndarray) else {"images": READING}
    return PictureRuns(data.name, {**data.source, **read, "per_file": per_file}, runs, data.skipped)


def picture_keys(
    images: Sequence[Path] | np.ndarray, root: str | os.PathLike[str] | None = None
) -> list[str]:
    """What each picture is called in files of captions; see `picture_runs`."""
    if isinstance(images, np.ndarray):
        return [f"{number:06d}" for number in range(len(images))]
    paths = [Path(os.path.abspath(image)) for image in images]
    if root is None:
        home = Path(os.path.commonpath([path.parent for path in paths]))
    else:
        home = Path(os.path.abspath(root))
    outside = [path for path in paths if not path.is_relative_to(home)]
    if outside:
        raise LabError(f"{outside[0]} does not lie below {home}; give the folder of the pictures.")
    keys = [readable(path.relative_to(home).as_posix()) for path in paths]
    path_of: dict[str, Path] = {}
    for key, path in zip(keys, paths, strict=True):
        if path_of.setdefault(key, path) != path:
            raise LabError(f"Two pictures below {home} would both be called {key}; rename one.")
    return keys


def decoded_content(content: Content) -> Image.Image | str:
    """The picture in RGB, or what is wrong with it."""
    if isinstance(content, str):
        return content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    try:
        return decode_image(content if isinstance(content, bytes) else content.read_bytes())
    except ImageError as error:
        return str(error)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _shard_run(shards: ShardSet, number: int) -> Run:
    """Joined sets have the set's name in front: one folder of captions holds them all."""
    name = shards.shards[number].name.removesuffix(".tar").replace("/", ".")
    return Run(name, lambda: map(_sample, shards.samples(number)))


def _sample(sample: Sample | Broken) -> tuple[str, Content]:
    if isinstance(sample, Broken):
        return sample.name, sample.detail or sample.reason
    return sample.key, sample.image
