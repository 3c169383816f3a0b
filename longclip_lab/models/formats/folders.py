"""Folders as transformers writes them: their JSON and their weights, in one file or in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError
from longclip_lab.files import read_json_object
from longclip_lab.models.checkpoints import read_checkpoints, read_state_dict
from longclip_lab.models.formats.names import Weights

CONFIG = "config.json"
_STEMS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LabError if the file is missing or holds something else."""
    if not path.exists():
        raise LabError(f"There is no {path.name} in {path.parent}.")
    return read_json_object(path)


def clip_kind(folder: Path) -> str | None:
    """What a folder holds: transformers' "clip", "clip_text_model", .., "diffusers", or None."""
    if (folder / "model_index.json").is_file() or (folder / "text_encoder" / CONFIG).is_file():
        return "diffusers"
    if not (folder / CONFIG).is_file():
        return None
    kind = read_json(folder / CONFIG).get("model_type")
    return kind if isinstance(kind, str) and kind.startswith("clip") else None


def read_weights(folder: Path) -> Weights:
    """All tensors of a folder: model.safetensors or pytorch_model.bin, whole or in shards.

    Where both are there, safetensors. A file of half precision alone (model.fp16.safetensors) is
    read too. Raises LabError if there are none, if shards are missing or hold less than the index
    says, and as `read_state_dict` does.
    """
    for stem in _STEMS:
        if (folder / stem).is_file():
            return read_state_dict(folder / stem)
        if (folder / f"{stem}{_INDEX}").is_file():
            return _read_shards(folder / f"{stem}{_INDEX}")
    variants = sorted(folder.glob("model.*.safetensors"))
    if len(variants) == 1:
        return read_state_dict(variants[0])
    raise LabError(
        f"There are no weights in {folder}: expected {' or '.join(_STEMS)}, whole or with "
        f"{_INDEX}; got {', '.join(path.name for path in sorted(folder.iterdir()))}."
    )


def _read_shards(index: Path) -> Weights:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise LabError(f"{index} does not say which weights are in which file.")
    files = sorted(set(places.values()))
    if outside := [name for name in files if Path(name).name != name]:
        raise LabError(f"{index} names files outside its folder, which is refused: {outside[0]}.")
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise LabError(
            f"{len(missing)} of {len(files)} files of weights are missing in {index.parent}: "
            f"{', '.join(missing)}."
        )
    weights = read_checkpoints([index.parent / name for name in files]).weights
    if len(weights) < len(places) and (lost := sorted(places.keys() - weights.keys())):
        raise LabError(f"{index.parent} lacks {len(lost)} weights of its index, such as {lost[0]}.")
    return weights
