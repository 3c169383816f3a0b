"""What is in a file of weights, read without reading the weights where the format allows it."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from longclip_lab.errors import LabError
from longclip_lab.models.archive import is_archive
from longclip_lab.models.checkpoints import OPENAI_FACTS, read_state_dict

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
_WRAPPERS = ("state_dict", "model")
_PREFIX = "module."


@dataclass
class Contents:
    """The tensors of one file: shapes and types at once, values when they are asked for."""

    container: str
    """What kind of file it is: "safetensors", "PyTorch zip", "PyTorch, before 1.6" .."""
    tensors: dict[str, torch.Tensor]
    """By name, on the meta device: shapes and types without values."""
    read: Callable[[str], torch.Tensor]
    """The values of one of them."""
    beside: list[str] = field(default_factory=list)
    """What else a training state holds: "optimizer", "epoch" .."""
    unwrapped: list[str] = field(default_factory=list)
    """What was taken off the names: "model", "module."."""
    from_openai: bool = False
    """The three numbers are in it that only OpenAI's code writes."""


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """What a file of weights holds; no code in it is run.

    Of a safetensors file only the header is read, of a PyTorch zip only its pickle of names and
    shapes (the values stay on disk, mapped). TorchScript archives and PyTorch's old format have
    to be read whole.

    Raises LabError if the file is missing, cut short, holds code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise LabError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        # Not a zip of plain tensors: the door that `load` uses says why, or knows the format.
        return _named(read_state_dict(path), _other_container(path))
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {
                name: torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")
                for name, part in slices.items()
            }
    except KeyError as error:
        raise LabError(
            f"{path} holds numbers of a type that is not known here: {error}."
        ) from error
    except (SafetensorError, OSError) as error:
        raise LabError(f"{path} is not a whole safetensors file: {error}") from error

    def read(name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return Contents("safetensors", tensors, read)


def _unwrap(content: Any, path: Path) -> Contents:
    """Names and tensors of a loaded pickle; training states are opened and their rest is named."""
    beside: list[str] = []
    unwrapped: list[str] = []
    for entry in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            beside += [str(name) for name in content if name != entry]
            unwrapped.append(entry)
            content = content[entry]
    tensors = dict(_tensors(content))
    if not tensors:
        raise LabError(f"{path} holds no state dict: expected names and tensors.")
    holding = {name.partition(".")[0] for name in tensors}
    beside += [str(name) for name in content if str(name).partition(".")[0] not in holding]
    contents = _named(tensors, "PyTorch zip")
    contents.beside, contents.unwrapped = beside, unwrapped + contents.unwrapped
    return contents


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested dicts, their names joined by dots."""
    if not isinstance(content, Mapping):
        return
    for name, value in content.items():
        if torch.is_tensor(value):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.")


def _named(tensors: dict[str, torch.Tensor], container: str) -> Contents:
    plain = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    prefixed = any(name.startswith(_PREFIX) for name in tensors)
    weights = {name: tensor for name, tensor in plain.items() if name not in OPENAI_FACTS}
    return Contents(
        container,
        {name: tensor.to("meta") for name, tensor in weights.items()},
        weights.__getitem__,
        unwrapped=[_PREFIX] if prefixed else [],
        from_openai=len(weights) < len(plain) or container.startswith("TorchScript"),
    )


def _other_container(path: Path) -> str:
    return "TorchScript archive" if is_archive(path) else "PyTorch, before 1.6"


def sha256(path: Path) -> str:
    """The file's digest, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
