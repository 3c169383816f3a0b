"""Runs of the real command line that are killed at random moments, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors.torch import load_file

from longclip_lab import models
from tests import processes

Way = Callable[..., list[str]]
BATCH = 8
PATIENCE = 120.0
"""Seconds that anything here may take before it counts as hanging."""


def lab(*arguments: object) -> list[str]:
    """The command line in one process."""
    return [sys.executable, "-m", "longclip_lab.cli", *map(str, arguments)]


def launched(*arguments: object) -> list[str]:
    """The command line in two processes that it starts itself."""
    return lab(*arguments, "--processes", 2)


def torchrun(*arguments: object) -> list[str]:
    """The command line in two processes of torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*launch, *lab(*arguments)[1:]]


def train(*arguments: object, steps: int, every: int, out: Path) -> list[object]:
    """Arguments of a run whose steps take moments."""
    return [
        *("train", "longclip", "--model", "tiny", "--pairs", 32, "--k", 4, "--warmup-steps", 0),
        *("--batch-size", BATCH, "--steps", steps, "--checkpoint-every", every, "--no-tensorboard"),
        *("--no-progress", "--out", out, "--resume", *arguments),
    ]


@dataclass
class Disturbed:
    """A run that is started again after every kill, by the same command, until it ends.

    `commands` are taken in turns; `victim` chooses who is killed, by the aim, of the launcher and
    the processes that it has started. `span` is how long a start and some steps take, in seconds.
    """

    folder: Path
    commands: list[list[str]]
    rng: np.random.Generator
    span: float
    forked: bool = False
    """The commands are of the lab, in processes that have imported torch; see tests/processes.py"""
    victim: Callable[[list[psutil.Process], str], psutil.Process] = lambda family, aim: family[0]
    struck: Counter[str] = field(default_factory=Counter)
    """How many kills there were, by what they struck."""
    killed: Counter[str] = field(default_factory=Counter)
    """By who was killed."""
    codes: Counter[int] = field(default_factory=Counter)
    """Exit codes of the processes that were started here, of which a kill's is -9."""
    longest: float = 0.0
    """The most seconds from a kill until all other training processes had ended."""
    said: list[tuple[str, str]] = field(default_factory=list)
    """For every kill what it struck, and what was then written to stderr."""

    def strike(self, aim: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Start it, kill it when it does what is aimed at, and see what it leaves behind."""
        with self.start() as started:
            began = time.time()
            moment = AIMS[aim](self, began)
            while not moment():
                assert started.poll() is None, (
                    f"ended before kill {self.struck.total()}: {self.err()}"
                )
                time.sleep(0.0005)
            family = [psutil.Process(started.pid), *workers(started.pid)]
            victim = self.victim(family, aim)
            victim.send_signal(number)
            at = time.monotonic()
            others = [process for process in family[1:] if process != victim]
            _, left = psutil.wait_procs(others, PATIENCE)
            self.longest = max(self.longest, time.monotonic() - at)
            _, stuck = psutil.wait_procs(family[1:], PATIENCE)
            for process in stuck:
                process.kill()
            assert not left + stuck, f"{len(left + stuck)} processes go on without the others"
            self.codes[started.wait(PATIENCE)] += 1
        struck = what_was_struck(self.folder, began)
        self.struck[struck] += 1
        self.said.append((struck, self.err()))
        place = family.index(victim)
        self.killed["the only one" if len(family) == 1 else "parent" if place == 0 else
                    f"process {place - 1}"] += 1  # fmt: skip

    def finish(self) -> str:
        """Start it and let it end; returns what it prints."""
        with self.start() as started:
            assert started.wait(10 * PATIENCE) == 0, self.err()
        return self.out()

    def start(self) -> subprocess.Popen[str] | processes.Command:
        command = self.commands[self.struck.total() % len(self.commands)]
        if self.forked:
            for suffix in (".out", ".err"):
                self.log(suffix).write_text("")
            return processes.Command(command, self.log(".out"), self.log(".err"))
        # As many threads as there are here: sums are rounded by how they are shared out.
        threads = str(torch.get_num_threads())
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
        with self.log(".out").open("w") as out, self.log(".err").open("w") as err:
            return subprocess.Popen(command, stdout=out, stderr=err, env=environment)

    def log(self, suffix: str) -> Path:
        return self.folder.with_name(self.folder.name + suffix)

    def out(self) -> str:
        return self.log(".out").read_text()

    def err(self) -> str:
        return self.log(".err").read_text()


def workers(launcher: int) -> list[psutil.Process]:
    """The training processes that a launcher has started, by rank."""
    children = psutil.Process(launcher).children()
    ours = ("longclip_lab.cli", "spawn_main")
    return [child for child in children if any(word in " ".join(child.cmdline()) for word in ours)]


Moment = Callable[[], bool]


def any_time(run: Disturbed, began: float) -> Moment:
    """Anywhere from the start of the process to some steps later."""
    at = began + run.rng.uniform(0, run.span)
    return lambda: time.time() >= at


def going(run: Disturbed, began: float) -> Moment:
    """When it has gone on, and a little later."""
    log, later = run.folder / "log.jsonl", run.rng.uniform(0, 0.5)
    wrote = _first(lambda: log.exists() and log.stat().st_mtime > began and log.stat().st_size)
    return lambda: wrote() + later <= time.time()


def writing(run: Disturbed, began: float) -> Moment:
    """In the middle of a checkpoint's writing: its temporary name is there."""
    later = run.rng.uniform(0, 0.04)
    seen = _first(lambda: any((run.folder / "checkpoints").glob(".step-*.part")))
    gone_on = going(run, began)
    return lambda: gone_on() and seen() + later <= time.time()


AIMS = {"any time": any_time, "going": going, "writing": writing}


def _first(happened: Callable[[], object]) -> Callable[[], float]:
    """When something was first seen to have happened; never, as long as it has not."""
    at = [float("inf")]

    def when() -> float:
        if at[0] == float("inf") and happened():
            at[0] = time.time()
        return at[0]

    return when


def what_was_struck(folder: Path, began: float) -> str:
    """What a run that began then was doing when it was killed, by what there is."""

    def touched(paths: Iterable[Path]) -> bool:
        return any(path.stat().st_mtime > began for path in paths)

    steps = folder / "checkpoints"
    if touched(folder.glob("model")):
        return "at its end"
    if touched(steps.glob(".*.part")):
        return "while writing a checkpoint"
    if not any(steps.glob("step-*")):
        return "before the first checkpoint"
    return "between two" if touched(folder.glob("log.jsonl")) else "while starting again"


def assert_whole(folder: Path, keep: int = 2) -> None:
    """Every file with a final name can be read, and there is no more than there should be."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.endswith(".part") for part in path.parts):
            _assert_reads(path)
    steps = list((folder / "checkpoints").glob("step-*"))
    assert len(steps) <= keep + 1  # the one that replaces the oldest comes before that goes
    for step in steps:
        assert {path.name for path in step.iterdir()} == {"model.safetensors", "state.pt"}
    if (folder / "model" / "clip.json").exists():
        models.load(folder / "model")


def _assert_reads(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    else:
        assert path.name == "log.jsonl", path
        *lines, last = path.read_text().split("\n")
        for line in lines:
            json.loads(line)
        assert last == "" or last.startswith("{")


def assert_same(run: Path, undisturbed: Path) -> None:
    """The run ended as if nothing had happened, and nothing else is left of what did."""
    for folder in (run, undisturbed):
        assert_whole(folder)
    assert files(run) == files(undisturbed)
    one, other = (models.load(folder / "model").model.state_dict() for folder in (run, undisturbed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one.keys() == other.keys()
    assert rows(run) == rows(undisturbed)
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (run, undisturbed))
    assert one == other


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def rows(folder: Path) -> list[dict[str, float]]:
    """The lines of the log, but for what the clock decides."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    return [{**row, "samples_per_s": None} for row in found]


def disturb(run: Disturbed, aims: Iterable[str], undisturbed: Path) -> str:
    """Kill it once for each aim, look after every kill, let it end and compare."""
    for aim in aims:
        run.strike(aim)
        if run.folder.exists():
            assert_whole(run.folder)
    printed = run.finish()
    assert_same(run.folder, undisturbed)
    return printed
