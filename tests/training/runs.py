"""Weights compared, and runs in other processes: one that is killed, or one in each of several."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from longclip_lab.models import Clip
from longclip_lab.training import Recipe

SCRIPT = """
import os, pickle, signal, sys
from longclip_lab import models
from longclip_lab.training import train

data, recipe, new, step = pickle.load(open(sys.argv[1], "rb"))

def kill(row):
    if row["step"] == step:
        os.kill(os.getpid(), signal.SIGKILL)

clip = None if new else models.stretch(models.new_tiny(seed=1))
train(clip, recipe, data, out=sys.argv[2], progress=False, on_step=kill)
"""


def script(
    folder: Path, recipe: Recipe, data: Any, new: bool = False, kill_after: int | None = None
) -> list[Path]:
    """A script and its arguments: it trains the tests' tiny model, or a `new` one by the recipe,
    into `folder`/run."""
    if type(data).__module__.endswith("conftest"):  # which another process cannot import
        data = SimpleNamespace(**vars(data))
    (folder / "script.py").write_text(SCRIPT)
    (folder / "request.pkl").write_bytes(pickle.dumps((data, recipe, new, kill_after)))
    return [folder / "script.py", folder / "request.pkl", folder / "run"]


def weights(clip: Clip) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether they are equal to the bit."""
    return all(torch.equal(first[name], second[name]) for name in first)
