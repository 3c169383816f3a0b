"""A fresh tiny model and a handful of pairs, small enough that a training step takes moments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from longclip_lab import models, world


@dataclass
class FewPairs:
    """Pictures of the world with its summaries as short and two of them as long texts."""

    images: np.ndarray
    short: list[str]
    long: list[str]
    source: dict = field(default_factory=lambda: {"dataset": "few", "hash": "0"})


@pytest.fixture(scope="session")
def few():
    pairs = world.pairs(24, seed=5)
    long = [f"{one} {two}" for one, two in zip(pairs.short, pairs.short[::-1], strict=True)]
    return FewPairs(pairs.images, pairs.short, long)


@pytest.fixture(scope="session")
def tiny():
    return models.stretch(models.new_tiny(seed=1))


@pytest.fixture
def in_processes() -> Callable[..., None]:
    """A script of training in N processes of this machine; `accelerate launch --cpu` starts one."""

    def run(processes: int, *arguments: object) -> None:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*launch, "--nproc_per_node", str(processes), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]

    return run
