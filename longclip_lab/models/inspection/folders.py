"""Folders of weights: the lab's own, open_clip's, transformers' and diffusers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers

from longclip_lab.errors import LabError
from longclip_lab.models.checkpoints import Checkpoint, read_checkpoints
from longclip_lab.models.folder import CONFIG as OWN_CONFIG
from longclip_lab.models.folder import WEIGHTS as OWN_WEIGHTS
from longclip_lab.models.formats.folders import read_json
from longclip_lab.models.inspection import towers
from longclip_lab.models.inspection.formats import (
    Explained,
    compare,
    explain_config,
    explain_weights,
    shapes,
)

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_NAMED = {
    OWN_CONFIG: (OWN_WEIGHTS,),
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "config.json": ("model.safetensors", "pytorch_model.bin"),
}
"""The file of weights that belongs to a config; some folders hold one model for two libraries."""
_CALLS = {
    "clip": "load(FOLDER)",
    "align": "load(FOLDER): an adapter",
    "blip": "load(FOLDER): an adapter",
    "clip_text_model": "models.load_text_tower(FOLDER)",
}


def weight_files(folder: Path) -> list[Path]:
    """The file that belongs to the folder's config; else safetensors, else the first other kind."""
    for config, names in _NAMED.items():
        if (folder / config).is_file():
            if files := [folder / name for name in names if (folder / name).is_file()]:
                return files[:1]
            break
    for pattern in _WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def read_folder(folder: Path) -> tuple[Checkpoint, list[Path]]:
    """All tensors of a folder's shards, and the files.

    Raises LabError if there are none, and as `read_checkpoints` does.
    """
    files = weight_files(folder)
    if not files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise LabError(f"There are no weights in {folder}: it holds {there}.")
    return read_checkpoints(files), files


def explain_folder(folder: Path, checkpoint: Checkpoint) -> Explained:
    """By the config in the folder; a folder without one is explained by its weights alone."""
    explain: Callable[[Path, Checkpoint], Explained]
    if (folder / OWN_CONFIG).is_file():
        explain = _own
    elif (folder / "open_clip_config.json").is_file():
        explain = _open_clip
    elif (folder / "config.json").is_file():
        explain = _transformers
    else:
        return explain_weights(checkpoint)
    return explain(folder, checkpoint)


def pipeline_parts(folder: Path) -> dict[str, Path]:
    """The text encoders of a diffusers pipeline, by their names in it; empty for other folders."""
    encoders = sorted(folder.glob("text_encoder*/config.json"))
    return {path.parent.name: path.parent for path in encoders}


def _own(folder: Path, checkpoint: Checkpoint) -> Explained:
    config = read_json(folder / OWN_CONFIG)
    card = config.get("card")
    card = card if isinstance(card, dict) else {}
    explained = explain_config(
        "longclip_lab folder", "load(FOLDER)", card.get("model_cfg"), checkpoint.weights
    )
    if not (folder / OWN_WEIGHTS).is_file():
        explained.notes.append(f"{OWN_WEIGHTS} is missing: the folder was copied only in part")
    facts = ("provenance", "trained_on")
    explained.notes += [f"{name}: {card[name]}" for name in facts if card.get(name)]
    return explained


def _open_clip(folder: Path, checkpoint: Checkpoint) -> Explained:
    config = read_json(folder / "open_clip_config.json")
    model_cfg = config.get("model_cfg")
    return explain_config("open_clip folder", "load(FOLDER)", model_cfg, checkpoint.weights)


def _transformers(folder: Path, checkpoint: Checkpoint) -> Explained:
    stored = read_json(folder / "config.json")
    kind = str(stored.get("model_type", "?"))
    names = stored.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else None
    explained = Explained(f"transformers {name or kind}", _CALLS.get(kind))
    try:
        _explain_config(explained, checkpoint, stored, kind, name)
    except Exception as error:  # nobody has checked the config
        explained.notes.append(
            f"config.json is none that this transformers knows: {shorten(str(error), 200)}"
        )
    return explained


def _explain_config(
    explained: Explained,
    checkpoint: Checkpoint,
    stored: dict[str, Any],
    kind: str,
    name: str | None,
) -> None:
    cls: Any = getattr(transformers, name, None) if name else None
    config = transformers.AutoConfig.for_model(**{**stored, "model_type": kind})
    vision, text = stored.get("vision_config"), stored.get("text_config")
    facts = config.to_dict()
    whole = {"text" if vision is None else "image": facts}
    parts = {"image": facts.get("vision_config"), "text": facts.get("text_config")}
    used = parts if vision is not None or text is not None else whole
    explained.architecture = {name: towers.of_config(part) for name, part in used.items() if part}
    explained.embed_dim = facts.get(
        "image_text_hidden_size" if kind == "blip" else "projection_dim"
    )
    if cls is not None:
        with torch.device("meta"):
            expected = shapes(cls(config).state_dict())
        found = {name: s for name, s in shapes(checkpoint.weights).items() if name in expected
                 or not name.endswith("position_ids")}  # fmt: skip
        compare(explained, found, expected)
