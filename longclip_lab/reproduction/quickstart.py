"""The first lesson, headless: probe, stretch, fine-tune, evaluate, report.

    longclip-lab quickstart

Two CPU cores, no network, under five minutes. The same steps as lessons 00 to 03, on smaller sets.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from longclip_lab import recipes, world
from longclip_lab.evaluation import evaluate
from longclip_lab.files import atomic_write
from longclip_lab.models import Clip, load, stretch
from longclip_lab.probing import counterfactual_probe, effective_length
from longclip_lab.reproduction.report import write_report
from longclip_lab.reproduction.results import ModelRow, QuickstartResults
from longclip_lab.training import Recipe, train

KEEP, RATIO = 20, 4
STRETCHINGS = {"not stretched": "none", "linear": "linear", "KPS": "kps", "keep + random": "random"}
FINE_TUNINGS = {
    "long only": {"objective": "long"},
    "long + 0.1 short": {"objective": "mixed", "short_weight": 0.1},
    "long + 1.0 short": {"objective": "mixed", "short_weight": 1.0},
    "long + short, PCM": {"objective": "pcm", "short_weight": 1.0},
}
BENCHMARKS = ("world/long-retrieval", "world/short-retrieval", "world/kind", "world/colour")
PROBED_PAIRS, QUESTIONS, TRAINING_PAIRS = 500, 1200, 4000


def score(
    clip: Clip,
    label: str,
    stage: str,
    seconds: float = 0.0,
    variance_kept: float | None = None,
    recipe: dict | None = None,
    progress: bool = False,
) -> ModelRow:
    """Evaluate one model on the world's four benchmarks."""
    records = {r.protocol: r for r in evaluate(clip, *BENCHMARKS, progress=progress).records}
    long, short, kind, colour = (records[name] for name in BENCHMARKS)
    return ModelRow(
        label=label,
        stage=stage,
        long_i2t=long.scores["i2t R@1"],
        long_t2i=long.scores["t2i R@1"],
        short_i2t=short.scores["i2t R@1"],
        short_t2i=short.scores["t2i R@1"],
        kind=kind.scores["top-1"],
        colour=colour.scores["top-1"],
        truncated=long.num_truncated,
        seconds=seconds,
        variance_kept=variance_kept,
        recipe=recipe or {},
    )


def fine_tune(
    clip: Clip, recipe: Recipe, data, label: str, progress: bool
) -> tuple[Clip, ModelRow]:
    """Train a copy of a stretched model and evaluate it."""
    run = train(clip, replace(recipe, name=label), data, progress=progress)
    pcm = recipe.objective == "pcm"
    kept = [row["variance_kept"] for row in run.history]
    facts = {
        name: getattr(recipe, name)
        for name in (
            "objective",
            "short_weight",
            "k",
            "steps",
            "batch_size",
            "learning_rate",
            "seed",
        )
    }
    mean = sum(kept) / len(kept) if pcm else None
    return run.model, score(run.model, label, "fine-tuned", run.seconds, mean, facts, progress)


def run(
    out: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    announce: Callable[[str], None] = lambda text: None,
) -> QuickstartResults:
    """Run the lesson; with `out`, write `report.html` and `results.json` there.

    `announce` is called with one sentence before every part. `seed` orders the training pairs.
    """
    began = time.perf_counter()
    clip = load("tiny")
    probed = world.pairs(PROBED_PAIRS, seed=world.PROBE_SEED)
    questions = world.counterfactuals(QUESTIONS)
    announce("1/4  What does the bundled CLIP read?")
    before = effective_length(clip, probed, progress=progress)
    probes = {clip.name: counterfactual_probe(clip, questions, progress=progress)}

    announce("2/4  Stretch 77 positions to 248, four ways, and evaluate each without training")
    stretched = {
        label: stretch(clip, KEEP, RATIO, method=method) for label, method in STRETCHINGS.items()
    }
    rows = [
        score(model, label, "start" if label == "not stretched" else "stretched", progress=progress)
        for label, model in stretched.items()
    ]

    announce("3/4  Fine-tune the KPS model on long captions, with and without short ones")
    data = world.pairs(TRAINING_PAIRS, seed=world.TRAIN_SEED)
    base = replace(recipes.longclip("tiny"), seed=seed)
    tuned = {}
    for label, change in FINE_TUNINGS.items():
        recipe = replace(base, **change)
        tuned[label], row = fine_tune(stretched["KPS"], recipe, data, label, progress)
        rows.append(row)

    announce("4/4  What does the fine-tuned model read?")
    best = max(
        (row for row in rows if row.stage == "fine-tuned"),
        key=lambda row: row.long_i2t.value + row.long_t2i.value + row.short_i2t.value
        + row.short_t2i.value,
    ).label  # fmt: skip
    after = effective_length(tuned[best], probed, progress=progress)
    probes[best] = counterfactual_probe(tuned[best], questions, progress=progress)
    results = QuickstartResults(
        rows, before, after, probes, best, _facts(seed, time.perf_counter() - began)
    )
    if out is not None:
        atomic_write(Path(out) / "results.json", json.dumps(results.to_dict(), indent=1) + "\n")
        write_report(results, Path(out) / "report.html")
    return results


def _facts(seed: int, seconds: float) -> dict:
    from longclip_lab import __version__
    from longclip_lab.evaluation.records import commit

    return {
        "command": "longclip-lab quickstart",
        "seed": seed,
        "seconds": round(seconds, 1),
        "commit": commit(),
        "longclip_lab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "pairs": {"probed": PROBED_PAIRS, "training": TRAINING_PAIRS},
        "questions": QUESTIONS,
    }
