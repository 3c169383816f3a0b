"""What waiting threads cost on a machine that others use too: wall and processor time of one work.

    python benchmarks/busy_machine.py [--work quickstart|tests|lesson] [--rounds 3] [--load 0 1 2]

The same work (a short fine-tuning and an evaluation of the tiny model, `longclip-lab quickstart`,
the unit tests of a room, or the first lesson) in fresh processes: with the threads as OpenMP has
them by default, as this library sets them, with waiting threads that never spin, and with one
thread; alone and beside one and two busy processes that this script starts and ends. Settings take
turns, so that a drift of the machine meets them all; of several rounds the median counts. Prints
one JSON object. Takes about ten minutes on two cores.

Goals: alone the library's setting costs at most 1.03 times the default's wall time; beside two busy
processes quickstart takes at most 1.3 times the processor time and 4 times the wall time of alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

FINE_TUNING = """
import dataclasses
import longclip_lab as ll
recipe = ll.recipes.longclip("tiny")
recipe = dataclasses.replace(recipe, steps=8, warmup_steps=2, hard_negative_group=1)
run = ll.train(ll.stretch(ll.load("tiny")), recipe, ll.world.pairs(1000), progress=False)
ll.evaluate(run.model, "world/short-retrieval")
"""
SETTINGS = {
    "default": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "300000"},  # libgomp's own number
    "library": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "while True: pass"
LESSON = "notebooks/00-start-here.ipynb"
WORKS = {
    "fine-tuning": ["-c", FINE_TUNING],
    "quickstart": ["-m", "longclip_lab.cli", "quickstart", "--out", "{folder}"],
    "tests": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/objectives"],
    "lesson": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", LESSON],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", choices=WORKS, default="fine-tuning")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--load", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for load in options.load:
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in options.settings}
        with busy(load):
            for _ in range(options.rounds):
                for name in options.settings:
                    seconds[name].append(timed(options.work, SETTINGS[name]))
        for name, taken in seconds.items():
            wall, processor = (round(statistics.median(one), 2) for one in zip(*taken, strict=True))
            rows.append({"busy": load, "setting": name, "wall": wall, "processor": processor})
            print(rows[-1], file=sys.stderr, flush=True)
    result = {"benchmark": "busy_machine", "work": options.work, "cores": os.cpu_count()}
    print(json.dumps(result | {"rounds": options.rounds, "seconds": rows}, indent=2))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """`count` processes that each want a core for themselves."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def timed(work: str, setting: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of the work in a process of its own."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {name: value for name, value in setting.items() if value}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [argument.replace("{folder}", folder) for argument in WORKS[work]]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit((done.stdout + done.stderr).decode(errors="replace")[-2000:])
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, spent


if __name__ == "__main__":
    main()
