"""What tests of several rooms share."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import longclip_lab  # noqa: F401  (first of all, so that its threads are set before torch starts any)

collect_ignore = ["fuzz"]
"""The fuzzer is a program of its own, which tests/test_fuzz.py calls."""

TIMEOUT = 300
"""Seconds for a test. Not in pyproject.toml, where it would end lessons run by --nbmake, too."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("timeout") is not None:
        return
    for item in items:
        if not item.get_closest_marker("timeout") and item.path.suffix != ".ipynb":
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session")
def made_up() -> ModuleType:
    """The builders of made-up results in `tests/made_up.py`."""
    spec = importlib.util.spec_from_file_location("made_up", Path(__file__).with_name("made_up.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_processes() -> Callable[..., None]:
    """Runs a script with its arguments in N processes that train together."""

    from tests.processes import run_script

    def run(processes: int, *arguments: object) -> None:
        codes, said = run_script(*arguments, processes=processes)
        assert codes == [0] * processes, said[-2000:]

    return run


@pytest.fixture
def under_torchrun() -> Callable[..., str]:
    """A script or module (-m) with its arguments, in N processes; gives what they print.

    By torchrun: `accelerate launch --cpu` starts a single process, whatever it is told.
    """

    def run(processes: int, *arguments: object) -> str:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*launch, "--nproc_per_node", str(processes), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run
