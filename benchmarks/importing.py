"""Processor time from `import longclip_lab` to the first figure, beyond the libraries it needs.

    python benchmarks/importing.py [--rounds 5]

Each round starts a process that imports torch, open_clip and plotly and makes an empty figure, and
one that goes the way of the README: imports longclip_lab, loads the tiny model, measures its
effective length on eight pairs and makes the figure. A round before them compiles the modules. The
least of the rounds counts, in seconds of processor time, so that a busy machine matters little.
Prints one JSON object.

Takes about a minute. Goal: at most 1 second beyond the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile

GOAL = 1.0  # seconds
PATHS = {
    "libraries": "import open_clip, plotly.graph_objects as go, torch; go.Figure()",
    "first_figure": "import longclip_lab as ll; clip = ll.load('tiny'); "
    "ll.probe.effective_length(clip, ll.world.pairs(8)).plot()",
}


def cpu_seconds(code: str, environment: dict[str, str]) -> float:
    """The processor time of a Python process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        taken = {name: [] for name in PATHS}
        for _ in range(1 + arguments.rounds):
            for name, code in PATHS.items():
                taken[name].append(cpu_seconds(code, environment))
    least = {name: min(seconds[1:]) for name, seconds in taken.items()}
    result = {
        "benchmark": "importing",
        "rounds": arguments.rounds,
        "threads": 1,
        "cpu_seconds": least,
        "beyond_libraries": least["first_figure"] - least["libraries"],
        "goal": GOAL,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
