"""Checkpoints of a run: whole or not there, read without running any code.

FOLDER/run.json                     what the run is: recipe, data, starting weights
FOLDER/log.jsonl                    one line a logged step
FOLDER/checkpoints/step-000050/     model.safetensors and state.pt (optimizer, step)
FOLDER/model/                       the trained model, for `ll.load`

The learning rate, the order of the pairs and the random numbers of a step are functions of
(recipe, step), so the step number is all the state they have.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from longclip_lab.constants import OLD_OBJECTIVES, current_names
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write, give_rights, leftovers, read_json_object, to_json
from longclip_lab.training.distributed import load_moments, load_weights
from longclip_lab.training.recipe import Recipe

# What may differ between a run and its continuation.
DISPLAY = {
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "workers",
    "cache_image_features",
    "micro_batch",
    "checkpoint_minutes",
    "max_nan_steps",
    "max_bad_fraction",
    "sharding",
}
# What torch and safetensors raise for a file that is missing, cut short or holds code.
_DAMAGED = (
    OSError,
    SafetensorError,
    RuntimeError,
    LookupError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and bytes of all weights."""
    whole = hashlib.sha256()
    # By name, not by order: two ways to build a model may register modules differently.
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{whole.hexdigest()}"


def describe(recipe: Recipe, source: dict, model: nn.Module) -> dict[str, Any]:
    """What makes a run this run and no other: recipe, data and starting weights."""
    # What is only shown, or how often a checkpoint is made, does not make another run.
    fields = {key: value for key, value in asdict(recipe).items() if key not in DISPLAY}
    # Through JSON, so that it equals what is read back (tuples become lists).
    return json.loads(json.dumps({"recipe": fields, "data": source, "start": weights_hash(model)}))


def claim(folder: Path, identity: dict[str, Any], facts: dict[str, Any], resume: bool) -> None:
    """Make `folder` the place of this run, or make sure that it already is.

    Raises LabError if it holds anything else, or this run without `resume`.
    """
    if folder.exists() and not folder.is_dir():
        raise LabError(f"{folder} is a file; a run needs a folder.")
    record = folder / "run.json"
    if not record.exists():
        if folder.exists() and set(folder.iterdir()) - set(leftovers(folder)):
            raise LabError(f"{folder} is not empty and holds no run; give another folder.")
        atomic_write(record, to_json({**identity, **facts}, indent=2) + "\n")
        _tidy(folder)
        return
    try:
        found = read_json_object(record)
    except LabError as error:
        raise LabError(f"{error} It should say what {folder} is; give another folder.") from None
    if not isinstance(found.get("recipe"), dict):
        raise LabError(f"{record} is no record of a run; give another folder.")
    different = _differences(identity, found)
    if different:
        raise LabError(f"{folder} holds a different run ({different}); give another folder.")
    if not resume:
        raise LabError(
            f"{folder} already holds this run; continue it with resume=True (--resume), or give "
            "another folder."
        )
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove what a process that was killed had not finished writing. A folder has one run."""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for path in leftovers(place):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _differences(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    recipe = current_names(found["recipe"])
    for old, new in OLD_OBJECTIVES.items():
        if recipe.get("objective") == old:
            recipe["objective"] = new
    parts = [
        f"{key}: {recipe.get(key)!r} there, {value!r} now"
        for key, value in wanted["recipe"].items()
        if recipe.get(key) != value
    ]
    if found.get("data") != wanted["data"]:
        parts.append("other data")
    if found.get("start") != wanted["start"]:
        parts.append("other starting weights")
    return "; ".join(parts)


def save_checkpoint(
    folder: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    moments: dict[str, Any],
    keep: int,
) -> Path:
    """Write the state after `step` steps and delete all but the last `keep` checkpoints.

    `weights` and `moments` are the whole states of model and optimizer.
    """
    home = folder / "checkpoints"
    path = home / f"step-{step:06d}"
    if path.exists():
        return path
    # Written beside its place and renamed when it is whole: a kill leaves no half checkpoint.
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, temporary / "model.safetensors")
    torch.save({"step": step, "optimizer": moments}, temporary / "state.pt")
    give_rights(temporary)
    for file in temporary.iterdir():
        _to_disk(file)
    temporary.rename(path)
    for old in checkpoint_paths(folder)[:-keep]:
        # Out of the way first: one that is deleted by half must not look like a checkpoint.
        shutil.rmtree(old.rename(_temporary(old)))
    return path


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _to_disk(path: Path) -> None:
    """Have the system write out what it holds back: the name must not outlive the content when
    the machine loses its power, as a spot machine may."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    paths = (folder / "checkpoints").glob("step-*")
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's state into `model` and `optimizer`; returns the number of steps done.

    Raises LabError if a file of it is missing or damaged.
    """
    try:
        # weights_only and safetensors: a checkpoint from elsewhere cannot run code.
        weights = load_file(path / "model.safetensors")
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        load_weights(model, weights)
        load_moments(optimizer, state["optimizer"])
        return int(state["step"])
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise LabError(
            f"The checkpoint {path} cannot be read ({reason}). Delete it to go on from the one "
            "before it."
        ) from None
