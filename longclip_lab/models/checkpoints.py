"""Checkpoint files of Long-CLIP, read into open_clip modules.

The released files are state dicts in OpenAI's layout with two tables of positions of the full
length: `positional_embedding`, of which positions 0-19 are used, and `positional_embedding_res`,
used from 20 on.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from longclip_lab.errors import LabError
from longclip_lab.models.assembly import assemble, build_model, preprocess_card
from longclip_lab.models.clip import Clip
from longclip_lab.text import get_tokenizer

KEPT = 20
RATIO = 4
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")

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
)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file (.pt, .pth, .bin, .safetensors), without running any code.

    A `state_dict` or `model` entry and a `module.` prefix, as training scripts leave them, are
    unwrapped.

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
    return {name: value for name, value in tensors.items() if name not in _NOT_WEIGHTS}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints on odd files; the errors below say more
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LabError(
            f"{path} is refused: it is not a file of plain tensors. Either it is no checkpoint, or "
            "it is a pickle of other objects, which could run code when opened. Save the model's "
            "state_dict alone (torch.save(model.state_dict(), FILE)) or use safetensors."
        ) from error
    except _DAMAGED as error:
        if "TorchScript" in str(error):
            raise LabError(
                f"{path} is a TorchScript archive, as OpenAI released its models. Load these with "
                'their open_clip name: load("ViT-B-16", pretrained="openai").'
            ) from error
        raise LabError(
            f"{path} is not a whole checkpoint file: it is empty, cut short or of another format."
        ) from error


def is_longclip(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """True if the state dict has Long-CLIP's second table of positions."""
    return "positional_embedding_res" in state_dict


def longclip_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The open_clip `model_cfg` of a Long-CLIP state dict, read from the shapes alone.

    As OpenAI's code does: a head for every 64 dimensions of width, QuickGELU.

    Raises KeyError if a weight is missing that every such model has.
    """
    patch_rows = state_dict["visual.conv1.weight"]
    grid = round((len(state_dict["visual.positional_embedding"]) - 1) ** 0.5)
    text_width = state_dict["ln_final.weight"].shape[0]
    return {
        "embed_dim": state_dict["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch_rows.shape[-1],
            "layers": count_layers(state_dict, "visual.transformer"),
            "width": patch_rows.shape[0],
            "patch_size": patch_rows.shape[-1],
        },
        "text_cfg": {
            "context_length": len(state_dict["positional_embedding"]),
            "vocab_size": len(state_dict["token_embedding.weight"]),
            "width": text_width,
            "heads": max(text_width // 64, 1),
            "layers": count_layers(state_dict, "transformer"),
        },
    }


def load_longclip(
    path: str | os.PathLike[str], state_dict: dict[str, torch.Tensor] | None = None
) -> Clip:
    """A Long-CLIP checkpoint file as a `Clip`; `state_dict` spares reading the file again.

    Raises LabError as `read_state_dict` does, and for a file of another architecture.
    """
    state_dict = read_state_dict(path) if state_dict is None else dict(state_dict)
    if not is_longclip(state_dict):
        raise LabError(
            f"{path} is not a Long-CLIP checkpoint: it has no 'positional_embedding_res'. Weights "
            'of another architecture need its name, such as load("ViT-B-16", pretrained=FILE).'
        )
    kept_TW = state_dict.pop("positional_embedding_res").clone()
    try:
        kept_TW[:KEPT] = state_dict["positional_embedding"][:KEPT]
        model_cfg = longclip_config(state_dict)
        model = build_model(model_cfg)
        model.load_state_dict({**state_dict, "positional_embedding": kept_TW})
    except (KeyError, IndexError, RuntimeError) as error:
        raise LabError(
            f"{path} is a checkpoint of another architecture, not Long-CLIP's ViT: "
            f"{shorten(str(error), 300)}"
        ) from error
    clip = assemble(
        model,
        model_cfg,
        get_tokenizer("clip"),
        preprocess_card(model),
        Path(path).stem,
        provenance=f"Long-CLIP checkpoint file {Path(path).name}",
        trained_on="not stated in the file",
    )
    length = model_cfg["text_cfg"]["context_length"]
    clip.card["positions"] = {"method": "kps", "keep": KEPT, "ratio": RATIO, "length": length}
    return clip


def count_layers(state_dict: Mapping[str, torch.Tensor], tower: str) -> int:
    """Blocks of a transformer named as OpenAI names them: `{tower}.resblocks.0` and so on."""
    pattern = re.compile(rf"{re.escape(tower)}\.resblocks\.(\d+)\.")
    return len({match[1] for name in state_dict if (match := pattern.match(name))})
