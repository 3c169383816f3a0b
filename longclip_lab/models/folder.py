"""The lab's own format: a folder with `model.safetensors` and `clip.json`. No pickles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.files import atomic_path, atomic_write, read_json, to_json
from longclip_lab.models.assembly import assemble, build_model
from longclip_lab.models.checkpoints import read_state_dict, sha256
from longclip_lab.models.clip import Clip
from longclip_lab.models.filling import fill, fitting, not_finite
from longclip_lab.models.tokenizers import tokenizer_from_record, tokenizer_record

FORMAT = "longclip-lab-1"
WEIGHTS = "model.safetensors"
CONFIG = "clip.json"


def save(clip: Clip, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
    """Write `clip` to `folder` (made if need be) and return the folder.

    `load(folder)` gives the same model to the last bit. With `dtype=torch.float16` the file is
    half as large and the weights are rounded; they come back as float32.

    Raises LabError if a weight does not fit into `dtype`, and for models that are not open_clip's.
    """
    if "vision_cfg" not in clip.card["model_cfg"]:
        raise LabError(
            f"'{clip.name}' is a {clip.card['architecture']}, not an open_clip model: it cannot be "
            "saved here. Keep the file or folder that it was loaded from."
        )
    folder = Path(folder)
    weights = {
        name: stored(name, tensor, dtype) for name, tensor in clip.model.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
        digest = sha256(temporary)
    config = {
        "format": FORMAT,
        "name": clip.name,
        "tokenizer": tokenizer_record(clip.tokenizer),
        "weights_sha256": digest,
        "card": clip.card,
    }
    atomic_write(folder / CONFIG, to_json(config, indent=1, ensure_ascii=False) + "\n")
    return folder


def is_saved_clip(folder: Path) -> bool:
    """True if `folder` was written by `save`."""
    return (folder / CONFIG).is_file()


def load_folder(folder: str | os.PathLike[str]) -> Clip:
    """Read what `save` wrote.

    Raises LabError if a file is missing, not in our format, cut short, or if the weights are not
    the ones that the config was written with.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise LabError(f"{folder} has a {CONFIG} but no {WEIGHTS}: it was copied only in part.")
    if sha256(path) != config["weights_sha256"]:
        raise LabError(
            f"{path} is not the file that {CONFIG} was written with: it was cut short or replaced."
        )
    with fitting(folder / CONFIG, "describes no model"):
        card = dict(config["card"])
        model = build_model(card["model_cfg"], at_most=path.stat().st_size)
    with fitting(path, f"does not fit the model of its {CONFIG}"):
        fill(model, read_state_dict(path))
    with fitting(folder / CONFIG, "describes no model"):
        return assemble(
            model,
            card.pop("model_cfg"),
            tokenizer_from_record(config["tokenizer"]),
            card.pop("preprocess"),
            config["name"],
            **card,
        )


def stored(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A contiguous copy on the CPU, rounded to `dtype`; safetensors refuses shared memory.

    Raises LabError if a value is too large for `dtype`, NotFiniteError if one is not finite.
    """
    stored = tensor.detach().cpu().contiguous().clone()
    if bad := not_finite({name: stored}):
        raise NotFiniteError(
            f"The weights '{name}' are not finite in {bad[name]} of {stored.numel()} values: "
            "such a model is not written."
        )
    if dtype is None or not stored.is_floating_point():
        return stored
    rounded = stored.to(dtype)
    if not_finite({name: rounded}):
        raise LabError(f"The weights '{name}' are too large for {dtype}: save without a dtype.")
    return rounded


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise LabError(f"{path.parent} is not a saved model: it has no {CONFIG}.")
    config = read_json(path)
    wanted = {"format", "name", "tokenizer", "weights_sha256", "card"}
    if not isinstance(config, dict) or not wanted <= config.keys() or config["format"] != FORMAT:
        raise LabError(f"{path} is not in the format '{FORMAT}' that longclip_lab.save writes.")
    return config
