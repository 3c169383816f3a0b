"""Folders of weights: the lab's own, open_clip's, transformers' and diffusers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from longclip_lab.errors import LabError
from longclip_lab.models.folder import CONFIG as OWN_CONFIG
from longclip_lab.models.folder import WEIGHTS as OWN_WEIGHTS
from longclip_lab.models.formats.folders import read_json
from longclip_lab.models.inspection import towers
from longclip_lab.models.inspection.contents import Contents, read_contents
from longclip_lab.models.inspection.formats import (
    Explained,
    compare,
    explain_config,
    explain_weights,
    shapes,
)

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_CALLS = {
    "clip": "load(FOLDER)",
    "align": "load(FOLDER): an adapter",
    "blip": "load(FOLDER): an adapter",
    "clip_text_model": "models.load_text_tower(FOLDER)",
}


def weight_files(folder: Path) -> list[Path]:
    """The folder's files of weights: safetensors if there are any, else the first other kind."""
    for pattern in _WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def read_folder(folder: Path) -> tuple[Contents, list[Path]]:
    """All tensors of a folder's shards, and the files.

    Raises LabError if there are none, and as `read_contents` does.
    """
    files = weight_files(folder)
    if not files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise LabError(f"There are no weights in {folder}: it holds {there}.")
    parts = [read_contents(path) for path in files]
    home = {name: part for part in parts for name in part.tensors}
    merged = Contents(
        parts[0].container,
        {name: part.tensors[name] for name, part in home.items()},
        lambda name: home[name].read(name),
        beside=sorted({entry for part in parts for entry in part.beside}),
        unwrapped=parts[0].unwrapped,
    )
    return merged, files


def explain_folder(folder: Path, contents: Contents) -> Explained:
    """By the config in the folder; a folder without one is explained by its weights alone."""
    explain: Callable[[Path, Contents], Explained]
    if (folder / OWN_CONFIG).is_file():
        explain = _own
    elif (folder / "open_clip_config.json").is_file():
        explain = _open_clip
    elif (folder / "config.json").is_file():
        explain = _transformers
    else:
        return explain_weights(contents)
    return explain(folder, contents)


def pipeline_parts(folder: Path) -> dict[str, Path]:
    """The text encoders of a diffusers pipeline, by their names in it; empty for other folders."""
    encoders = sorted(folder.glob("text_encoder*/config.json"))
    return {path.parent.name: path.parent for path in encoders}


def _own(folder: Path, contents: Contents) -> Explained:
    config = read_json(folder / OWN_CONFIG)
    card = config.get("card", {})
    explained = explain_config(
        "longclip_lab folder", "load(FOLDER)", card["model_cfg"], contents.tensors
    )
    if not (folder / OWN_WEIGHTS).is_file():
        explained.notes.append(f"{OWN_WEIGHTS} is missing: the folder was copied only in part")
    facts = ("provenance", "trained_on")
    explained.notes += [f"{name}: {card[name]}" for name in facts if card.get(name)]
    return explained


def _open_clip(folder: Path, contents: Contents) -> Explained:
    config = read_json(folder / "open_clip_config.json")
    return explain_config("open_clip folder", "load(FOLDER)", config["model_cfg"], contents.tensors)


def _transformers(folder: Path, contents: Contents) -> Explained:
    stored = read_json(folder / "config.json")
    kind = stored.get("model_type", "?")
    names = stored.get("architectures") or []
    cls: Any = getattr(transformers, names[0], None) if names else None
    title = f"transformers {names[0] if names else kind}"
    explained = Explained(title, _CALLS.get(kind))
    try:
        config = transformers.AutoConfig.for_model(**{**stored, "model_type": kind})
    except (ValueError, KeyError, TypeError) as error:
        explained.notes.append(f"config.json is none that this transformers knows: {error}")
        return explained
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
        found = {name: s for name, s in shapes(contents.tensors).items() if name in expected
                 or not name.endswith("position_ids")}  # fmt: skip
        compare(explained, found, expected)
    return explained
