"""Runs of the command line under many kills, far longer than a test may take: `make faults`.

Prints a line of JSON for each, with what the kills struck and how long the others took to end.
"""

from __future__ import annotations

import json
import signal
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
import pytest

from longclip_lab import data, world
from longclip_lab.cli import STOPPED
from tests.training import kills
from tests.training.test_streaming import change_picture

KILLS = 20
STEPS = {"steps": 240, "every": 3}
MINUTE = 60.0
VICTIMS = np.random.default_rng(2)
BROKEN = (17, 140, 141, 399)  # of 400 pairs, in shards of 50


def told(what: str, run: kills.Disturbed, began: float, **more: object) -> None:
    """What happened, in one line."""
    facts = {
        "what": what,
        "kills": run.struck.total(),
        "struck": dict(run.struck),
        "killed": dict(run.killed),
        "exit codes": {str(code): count for code, count in run.codes.items()},
        "most seconds until the others had ended": round(run.longest, 1),
        **more,
        "minutes": round((time.time() - began) / 60, 1),
    }
    print("\n" + json.dumps(facts), flush=True)


def undisturbed(folder: Path, command: list[object], way: kills.Way) -> float:
    """Let it run in peace; returns the seconds that it took beside its steps."""
    began = time.monotonic()
    kills.Disturbed(folder, [way(*command)], np.random.default_rng(), 0).finish()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return time.monotonic() - began - sum(kills.BATCH / row["samples_per_s"] for row in log)


def aims(count: int) -> list[str]:
    return list(islice(cycle(["any time", "writing", "going", "writing"]), count))


def anyone(family: list[psutil.Process], aim: str) -> psutil.Process:
    """The first of the processes, which writes, if its writing is aimed at; or anyone."""
    if aim == "writing":
        return family[1]
    return family[VICTIMS.integers(len(family))]


def test_one_process(tmp_path):
    began = time.time()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = undisturbed(whole, kills.train(**STEPS, out=whole), kills.lab)
    commands = [kills.lab(*kills.train(**STEPS, out=killed))]
    run = kills.Disturbed(killed, commands, np.random.default_rng(1), start + 1.5)
    kills.disturb(run, aims(KILLS), whole)
    told("one process", run, began, identical=True)


@pytest.mark.parametrize("how", [kills.torchrun, kills.launched])
def test_two_processes(how, tmp_path):
    began = time.time()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = undisturbed(whole, kills.train(**STEPS, out=whole), how)
    commands = [how(*kills.train(**STEPS, out=killed))]
    run = kills.Disturbed(killed, commands, np.random.default_rng(1), start + 1.5, anyone)
    kills.disturb(run, aims(KILLS // 2), whole)
    told(f"two processes, {how.__name__}", run, began, identical=True)
    assert run.longest < MINUTE
    running = ("between two", "while writing a checkpoint")
    silent = [said for what, said in run.said if what in running and "--resume" not in said]
    assert len(silent) <= run.killed["parent"], silent  # which is the one that would say it


def test_shards_of_which_one_per_cent_is_broken(tmp_path):
    began = time.time()
    shards = tmp_path / "shards"
    data.write_shards(world.pairs(400, seed=7), shards, 50)
    for number in BROKEN:
        change_picture(shards / f"shard-{number // 50:06d}.tar", f"{number:09d}")
    stream = ("--data", "shards", "--root", shards, "--hard-negative-group", 1, "--token-limit", 32)
    stream += (
        "--num-streams",
        4,
        "--shuffle-buffer",
        16,
        "--workers",
        1,
        "--max-bad-fraction",
        0.02,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = undisturbed(whole, kills.train(*stream, **STEPS, out=whole), kills.lab)
    commands = [kills.lab(*kills.train(*stream, **STEPS, out=killed))]
    run = kills.Disturbed(killed, commands, np.random.default_rng(3), start + 1.5)
    kills.disturb(run, aims(KILLS), whole)
    found = [json.loads((f / "broken-samples.json").read_text()) for f in (whole, killed)]
    assert found[0] == found[1]
    assert sorted(int(name.rpartition("/")[2]) for name in found[0]) == sorted(BROKEN)
    told("shards, 4 of 400 pairs broken", run, began, identical=True, broken=len(found[1]))


@pytest.mark.parametrize("how", [kills.torchrun, kills.launched])
def test_a_process_that_hangs_ends_the_other(how, tmp_path):
    """SIGSTOP: the process is there and says nothing more."""
    began = time.time()
    run = kills.Disturbed(
        tmp_path / "run",
        [how(*kills.train(**{**STEPS, "steps": 10_000}, out=tmp_path / "run"))],
        np.random.default_rng(4),
        0,
        lambda family, aim: family[2],
    )
    run.strike("going", signal.SIGSTOP)
    told(f"one of two processes hangs, {how.__name__}", run, began)
    assert run.longest < MINUTE
    assert "Process 1 of 2 of this run has ended or cannot be reached" in run.said[0][1]


def test_a_sigterm_is_a_pause(tmp_path):
    """As a cloud takes a machine away; of torchrun the exit code is its own."""
    began = time.time()
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    undisturbed(whole, kills.train(**STEPS, out=whole), kills.torchrun)
    command = kills.train(**STEPS, out=stopped)
    commands = [kills.launched(*command), kills.torchrun(*command)]
    run = kills.Disturbed(stopped, commands, np.random.default_rng(5), 0)
    for _ in commands:
        run.strike("going", signal.SIGTERM)
        kills.assert_whole(stopped)
    run.finish()
    kills.assert_same(stopped, whole)
    told("two processes, SIGTERM", run, began, identical=True)
    assert run.codes == {STOPPED: 1, 1: 1}
    assert all("is saved" in said for _, said in run.said)
