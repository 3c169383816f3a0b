"""Write the plans of the cloud tasks into book/cloud.md, beside the papers' figures.

    python book/update_cloud.py --measure
    python book/update_cloud.py

The first runs `benchmarks/plan.py`, which times training steps on this machine, and keeps what it
says in book/records/cloud.json; the second only makes the page anew, from that record, from the
plans at the head of the tasks in cloud/ and from the published times (`training.plan`).
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longclip_lab import cli
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write
from longclip_lab.training.plan import (
    GPUS,
    LONGCLIP_TIME,
    LOTLIP_TIME,
    MFU,
    PAPERS_RATE,
    RESTART_MINUTES,
    SPOT_HOURS,
    SPOT_PRICE,
    Plan,
    PublishedTime,
)

BOOK = Path(__file__).parent
PAGE, RECORD = BOOK / "cloud.md", BOOK / "records" / "cloud.json"
TASKS = BOOK.parent / "cloud"
BENCHMARK = BOOK.parent / "benchmarks" / "plan.py"
MARKS = re.compile(r"(<!-- cloud[^>]*-->\n).*?(<!-- /cloud -->)", re.DOTALL)
TIMES = 5
COMMAND = re.compile(r"^#   longclip-lab (plan .*)$", re.MULTILINE)
OF_PAPERS = {
    "plan longclip --preset paper --gpus A100:8": LONGCLIP_TIME,
    "plan lotlip --dataset-size 100M --no-cache-image-features --gpus A100:32": LOTLIP_TIME,
}


def planned(command: str) -> Plan:
    """What `longclip-lab plan ...` plans."""
    return cli._parse(shlex.split(command)).plan()


def task_plans() -> dict[str, Plan]:
    """The plan in the head of each task that trains, by the task's name."""
    found = {}
    for path in sorted(TASKS.glob("*.yaml")):
        for command in COMMAND.findall(path.read_text(encoding="utf-8")):
            found[path.stem] = planned(command)
    return found


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def span(fast: Plan, slow: Plan) -> list[str]:
    """Hours and dollars of two plans, a cell each."""
    return [f"{hours(one)}, ${one.dollars:,.0f}" for one in (fast, slow)]


def hours(one: Plan) -> str:
    return f"{one.hours:,.1f} h" if one.hours < 48 else f"{one.hours / 24:,.1f} days"


def beside_the_papers() -> str:
    """Published times, what share of the peak and how many pairs a second they come to."""
    heads = ["run", "published", "predicted at 30%", "share of the peak that the published time is",
             "pairs a second and GPU", "source"]  # fmt: skip
    rows = [_published_row(command, told) for command, told in OF_PAPERS.items()]
    return table(heads, rows)


def _published_row(command: str, told: PublishedTime) -> list[str]:
    one = planned(command)
    implied = one.mfu * one.hours * one.count / told.gpu_hours
    return [
        f"{told.what.partition(':')[0]}<br>`longclip-lab {command}`",
        _gpu_time(told.gpu_hours),
        _gpu_time(one.hours * one.count),
        f"{implied:.1%}",
        f"{told.rate:.1f}",
        told.source,
    ]


def _gpu_time(gpu_hours: float) -> str:
    if gpu_hours < 48:
        return f"{gpu_hours:.1f} GPU hours"
    return f"{gpu_hours / 24:.1f} GPU days"


def of_the_tasks() -> str:
    """What every task takes."""
    heads = ["task", "machines", "GB a GPU", "operations", f"at {MFU:.0%} of the peak",
             f"at the papers' {PAPERS_RATE:g} pairs a second", "the latter on spot"]  # fmt: skip
    rows = []
    for name, one in task_plans().items():
        on_demand = replace(one, spot=False)
        spot = replace(one.as_published, spot=True)
        rows.append(
            [
                f"`{name}`",
                f"{one.count} x {one.gpu.name}",
                f"{one.memory():.0f}",
                f"{one.flops:.1e}",
                *span(on_demand, on_demand.as_published),
                f"{hours(spot)}, ${spot.dollars:,.0f}",
            ]
        )
    return table(heads, rows)


def on_other_gpus(task: str) -> str:
    """The same run on as many GPUs of every kind."""
    one = replace(task_plans()[task], spot=False)
    heads = ["GPUs", "GB", "micro-batch that fits", f"at {MFU:.0%} of the peak",
             f"at the papers' {PAPERS_RATE:g} pairs a second", "dollars an hour"]  # fmt: skip
    rows = []
    for name, gpu in GPUS.items():
        other = replace(one, gpu=gpu)
        fits = other.largest_micro_batch
        rows.append(
            [
                f"{one.count} x {name}",
                f"{other.memory():.0f} of {gpu.memory:.0f}",
                "all" if fits == other.share else str(fits or "none"),
                *span(other, other.as_published),
                f"{gpu.dollars:.2f}, spot {gpu.dollars * SPOT_PRICE:.2f}",
            ]
        )
    return table(heads, rows)


def measured() -> str:
    """What the benchmark found, in a sentence."""
    facts = json.loads(RECORD.read_text(encoding="utf-8"))
    ratios = facts["predicted_over_measured_step"]
    return (
        f"Of two small CLIPs on a processor ({facts['machine']}, torch {facts['torch']}), the rate "
        "found from the one's training step predicts the time of the other's. Predicted over "
        f"measured: {statistics.median(ratios):.2f}, the median of {len(ratios)} runs of `python "
        f"benchmarks/plan.py` from {ratios[0]:.2f} to {ratios[-1]:.2f}, on a machine that others "
        "used as well."
    )


def assumed() -> str:
    """Everything that a plan assumes."""
    prices = ", ".join(f"{gpu.name} {gpu.dollars:.2f}" for gpu in GPUS.values())
    return "\n".join(
        [
            f"- {MFU:.0%} of the dense bfloat16 peak, if pictures arrive in time "
            "(`--mfu`, `--data-throughput`)",
            f"- dollars a GPU hour on demand: {prices}; spot {SPOT_PRICE:.0%} of it (`--dollars`, "
            "`--spot`)",
            f"- a spot machine is taken away every {SPOT_HOURS:g} hours; {RESTART_MINUTES:g} "
            "minutes pass until the next step, and half the time between two checkpoints is lost",
            "- long texts as long as the model reads, short ones 32 tokens (`--long-tokens`, "
            "`--short-tokens`)",
        ]
    )


def page_block() -> str:
    """Everything between the marks."""
    parts = {
        "Beside the papers": beside_the_papers(),
        "Beside this machine": measured(),
        "Every task": of_the_tasks(),
        "Long-CLIP B/16 on other GPUs": on_other_gpus("longclip-b16-8gpu-spot"),
        "Long-CLIP L/14 on other GPUs": on_other_gpus("longclip-l14-8gpu"),
        "LoTLIP 3M on other GPUs": on_other_gpus("lotlip-3m"),
        "What is assumed": assumed(),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def measure() -> dict[str, Any]:
    """Run the benchmark here a few times.

    Raises LabError if it fails.
    """
    return {
        "predicted_over_measured_step": sorted(_ratio() for _ in range(TIMES)),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def _ratio() -> float:
    run = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True)
    if run.returncode:
        raise LabError(f"{BENCHMARK.name} failed: {run.stderr.strip().splitlines()[-1]}")
    found = json.loads(run.stdout.splitlines()[-1])
    return round(found["predicted_over_measured_step"], 2)


def main(arguments: list[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    if not MARKS.search(page):
        raise LabError(f"{PAGE.name} has no block 'cloud': put its two marks back.")
    if arguments not in ([], ["--measure"]):
        raise LabError(f"Expected nothing or --measure, got {' '.join(arguments)}.")
    if arguments:
        atomic_write(RECORD, json.dumps(measure(), indent=1) + "\n")
    block = page_block()
    atomic_write(PAGE, MARKS.sub(lambda match: f"{match[1]}\n{block}\n\n{match[2]}", page))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LabError as error:
        sys.exit(f"error: {error}")
