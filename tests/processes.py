"""New processes for tests, which need not import torch again.

They are forked from a server that has imported what the lab needs and done nothing else, so each
starts in a moment instead of seconds. Where the start of Python is what is tested, for example
under torchrun, tests start it themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longclip_lab.training.run import free_port

PRELOADED = [
    *("torch", "open_clip", "accelerate", "torchvision.transforms.v2", "torch.distributed.fsdp"),
    *("longclip_lab.models", "longclip_lab.training", "longclip_lab.evaluation"),
]
PATIENCE = 240.0
"""Seconds that a process may take."""


def start(work: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
    """A process that calls `work`, a function of a module."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(PRELOADED)
    started = forking.Process(target=work, args=arguments)
    started.start()
    return started


def in_each(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """`work(rank, *arguments)` in N processes, all of which have to end well."""
    started = [start(work, rank, *arguments) for rank in range(processes)]
    for process in started:
        process.join(PATIENCE)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert codes == [0] * processes


class Command:
    """The command line in a new process, to be waited for like a `subprocess.Popen`."""

    def __init__(self, arguments: list[str], out: Path, err: Path):
        self._process = start(_command, arguments, out, err, torch.get_num_threads())
        self.pid = self._process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.join()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode


def run_script(script: object, *arguments: object, processes: int = 1) -> tuple[list[int], str]:
    """A script in N processes that train together: their exit codes, and what all say on stderr."""
    # One process alone has as many threads as there are here: sums are rounded by their number.
    port, threads = free_port(), 1 if processes > 1 else torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        started = [
            start(
                _script, rank, processes, port, threads, said, [str(script), *map(str, arguments)]
            )
            for rank in range(processes)
        ]
        until = time.monotonic() + PATIENCE
        for process in started:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
        errors = said.read_text() if said.exists() else ""
    assert None not in codes, f"still running after {PATIENCE:.0f} seconds: {errors[-2000:]}"
    return codes, errors


def _command(arguments: list[str], out: Path, err: Path, threads: int) -> None:
    from longclip_lab import cli

    _write_to(1, out)
    _write_to(2, err)
    torch.set_num_threads(threads)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.exit(cli.main(arguments))


def _write_to(descriptor: int, path: Path) -> None:
    """What this process says goes to the end of a file."""
    with path.open("a") as file:
        os.dup2(file.fileno(), descriptor)
    stream = os.fdopen(descriptor, "w", closefd=False, buffering=1)
    sys.stdout, sys.stderr = (stream, sys.stderr) if descriptor == 1 else (sys.stdout, stream)


def _script(
    rank: int, processes: int, port: int, threads: int, said: Path, arguments: list[str]
) -> None:
    _write_to(2, said)
    torch.set_num_threads(threads)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes > 1:
        os.environ |= {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
