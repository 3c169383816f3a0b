"""The tensors of a checkpoint file, whoever wrote it, without running any code."""

from __future__ import annotations

import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from longclip_lab.errors import LabError
from longclip_lab.models.archive import is_archive, read_archive

OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's files hold beside the weights; nobody else writes them."""

# What torch and safetensors raise for bytes that are no checkpoint, or only the half of one.
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and whether the file says of itself that it is OpenAI's kind of CLIP."""

    weights: dict[str, torch.Tensor]
    from_openai: bool


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The tensors of a file: .pt, .pth, .bin, .safetensors, or a TorchScript archive.

    A `state_dict` or `model` entry and a `module.` prefix, as training scripts leave them, are
    unwrapped. Of an archive only the tensors are read, see `longclip_lab.models.archive`.

    Raises LabError if the file is missing, empty, cut short, holds code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise LabError(f"There is no checkpoint file {path}.")
    content = _read(path)
    for entry in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    if not isinstance(content, Mapping) or not any(map(torch.is_tensor, content.values())):
        raise LabError(f"{path} holds no state dict: expected names and tensors.")
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if torch.is_tensor(value)
    }
    weights = {name: value for name, value in tensors.items() if name not in OPENAI_FACTS}
    return Checkpoint(weights, from_openai=len(weights) < len(tensors))


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The weights of `read_checkpoint`; raises LabError as it does."""
    return read_checkpoint(path).weights


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints on odd files; the errors below say more
            if is_archive(path):
                return read_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LabError(
            f"{path} is refused: it is not a file of plain tensors. Either it is no checkpoint, or "
            "it is a pickle of other objects, which could run code when opened. Save the model's "
            "state_dict alone (torch.save(model.state_dict(), FILE)) or use safetensors."
        ) from error
    except _DAMAGED as error:
        raise LabError(
            f"{path} is not a whole checkpoint file: it is empty, cut short or of another format."
        ) from error


def count_layers(state_dict: Mapping[str, torch.Tensor], tower: str) -> int:
    """Blocks of a transformer named as OpenAI names them: `{tower}.resblocks.0` and so on."""
    pattern = re.compile(rf"{re.escape(tower)}\.resblocks\.(\d+)\.")
    return len({match[1] for name in state_dict if (match := pattern.match(name))})
