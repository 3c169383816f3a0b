"""`export`: one model in another library's format, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from longclip_lab.errors import LabError, NotFiniteError, suggest
from longclip_lab.files import give_rights
from longclip_lab.models.adapters import Adapter
from longclip_lab.models.checkpoints import CHECKPOINT_ENDINGS
from longclip_lab.models.clip import Clip, TextTower
from longclip_lab.models.formats.export_files import write_longclip, write_open_clip, write_openai
from longclip_lab.models.formats.export_transformers import write_diffusers, write_transformers


@dataclass(frozen=True)
class Format:
    """Who writes it, and whether into a folder or one file."""

    write: Callable[[Clip | TextTower, Path, torch.dtype], None]
    is_folder: bool


FORMATS: dict[str, Format] = {
    "transformers": Format(write_transformers, is_folder=True),
    "diffusers": Format(write_diffusers, is_folder=True),
    "openai": Format(write_openai, is_folder=False),
    "longclip": Format(write_longclip, is_folder=False),
    "open_clip": Format(write_open_clip, is_folder=True),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export(
    clip: Clip | TextTower,
    path: str | os.PathLike[str],
    format: str = "transformers",
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `clip` so that another library reads it, and return `path`.

    - "transformers": a folder for `CLIPModel`, `CLIPTextModel`, `CLIPProcessor`, `CLIPTokenizer`,
      at any number of positions; of a text tower alone for the text models;
    - "diffusers": a folder with text_encoder/ and tokenizer/, as pipelines have them;
    - "openai", "longclip": one file of tensors for the official codes; Long-CLIP's wants 248
      positions;
    - "open_clip": a folder for `open_clip.create_model_and_transforms("local-dir:" + path)`.

    Folders hold safetensors. `dtype` rounds the weights, float32 by default.
    `longclip_lab.models.parity` compares what was written with `clip`.

    Raises NotFiniteError for weights that are not finite, LabError for an unknown format (with the
    near ones), a model that the format cannot hold (with the reason), weights too large for
    `dtype`, a `path` whose ending is of another kind, and one that exists, unless `overwrite`
    is given: then the files of the same names are replaced, and other weights in a folder, which
    would be mixed up with the new ones, are named and nothing is written.
    """
    writer = find_format(format)
    if isinstance(clip, Adapter):
        raise LabError(f"'{clip.name}' is an adapter: only open_clip's models can be written.")
    dtype = find_dtype(dtype)
    path = Path(path)
    _check_place(path, format, writer, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{path.parent} cannot be made a folder: {error.strerror}.") from error
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        made = Path(temporary) / "made"
        try:
            if writer.is_folder:
                made.mkdir()
            writer.write(clip, made, dtype)
        except NotFiniteError:
            raise
        except LabError as error:
            reason = str(error).rstrip(".")
            raise LabError(f"'{clip.name}' cannot be written as '{format}': {reason}.") from error
        give_rights(made)
        _move(made, path)
    return path


def find_format(name: str) -> Format:
    """The format of that name; raises LabError for another, with the near ones."""
    if name not in FORMATS:
        raise LabError(f"There is no format '{name}'. {suggest(str(name), FORMATS)}")
    return FORMATS[name]


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """float32, float16 or bfloat16; raises LabError for anything else."""
    found = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype or torch.float32
    if found not in DTYPES.values():
        raise LabError(f"Expected a dtype among {', '.join(DTYPES)}, got {dtype}.")
    return found


def _check_place(path: Path, format: str, writer: Format, overwrite: bool) -> None:
    ending = path.suffix.lower()
    if writer.is_folder and ending in CHECKPOINT_ENDINGS and not path.exists():
        raise LabError(f"'{format}' is a folder: name one without {path.suffix}, not {path}.")
    if not writer.is_folder and ending == ".safetensors":
        raise LabError(
            f"'{format}' is a file of PyTorch, which the official code reads: name it .pt, not "
            f"{path.name}."
        )
    if not path.exists() or (path.is_dir() and writer.is_folder and not any(path.iterdir())):
        return
    if path.is_dir() != writer.is_folder:
        kinds = ("a file", "a folder")
        raise LabError(
            f"This format is {kinds[writer.is_folder]}, but {path} is {kinds[path.is_dir()]}."
        )
    if not overwrite:
        raise LabError(f"{path} exists. Name another place, or say that it may be overwritten.")


def _move(made: Path, path: Path) -> None:
    """Put what was made in its place, file by file where a folder is there already."""
    if not made.is_dir():
        made.replace(path)
        return
    new = {file.relative_to(made) for file in made.rglob("*") if file.is_file()}
    if path.is_dir():
        kinds = (".safetensors", ".bin", ".pt", ".index.json")
        there = {file.relative_to(path) for file in path.rglob("*") if file.name.endswith(kinds)}
        if others := sorted(str(name) for name in there - new):
            raise LabError(
                f"{path} holds other weights, which would be mixed up with the new ones: "
                f"{', '.join(others[:5])}. Nothing was written."
            )
    for name in sorted(new):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made / name, target)
