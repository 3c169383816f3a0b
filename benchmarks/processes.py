"""The same training in one process and in two: samples a second, and whether the losses agree.

    python benchmarks/processes.py [--processes 2] [--model tiny] [--batch 128] [--steps 10]

Runs `longclip-lab train longclip` on the world with the same recipe and global batch, alone and
under `torchrun`, each process with one thread, in turns. (`accelerate launch --cpu` starts a single
process, whatever number it is given.) Samples a second are the medians of the logged steps, the
first two left out; starting up does not count. `efficiency` is the ratio of both over the number of
processes. That needs a core for each process: on fewer, or busy ones, it says nothing. Prints one
JSON object.

Takes about 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

WARM_UP = 2
AGREE = 1e-4


def train(processes: int, options: argparse.Namespace, out: Path) -> list[dict]:
    """The log of a run of `processes` processes with a thread each."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(processes)]
    recipe = {
        "model": options.model, "pairs": 4 * options.batch, "batch-size": options.batch,
        "steps": WARM_UP + options.steps, "warmup-steps": 1, "learning-rate": options.rate,
        "out": out,
    }  # fmt: skip
    arguments = [text for name, value in recipe.items() for text in (f"--{name}", str(value))]
    subprocess.run(
        [*launcher, "-m", "longclip_lab.cli", "train", "longclip", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=128, help="the global batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args()
    counts = (1, options.processes)
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    losses: dict[int, list[float]] = {}
    for _ in range(options.repetitions):
        for count in counts:
            with TemporaryDirectory() as folder:
                rows = train(count, options, Path(folder) / "run")
            speeds[count] += [row["samples_per_s"] for row in rows[WARM_UP:]]
            losses[count] = [row["loss"] for row in rows]
    alone, together = (losses[count] for count in counts)
    difference = max(abs(a - b) for a, b in zip(alone, together, strict=True))
    if difference > AGREE:
        raise SystemExit(f"the runs differ: losses {losses}")
    medians = {count: statistics.median(values) for count, values in speeds.items()}
    ratio = medians[options.processes] / medians[1]
    result = {
        "benchmark": "processes",
        "model": options.model,
        "global_batch": options.batch,
        "steps": options.steps * options.repetitions,
        "cores": len(os.sched_getaffinity(0)),
        "threads_per_process": 1,
        "samples_per_s": {str(count): value for count, value in medians.items()},
        "ratio": ratio,
        "efficiency": ratio / options.processes,
        "loss_difference": difference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
