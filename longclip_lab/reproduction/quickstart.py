"""The first lesson, headless: probe, stretch, fine-tune, evaluate, report.

    longclip-lab quickstart

Two CPU cores, no network, under five minutes. The same steps as lessons 00 to 03, on smaller sets.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from longclip_lab import __version__, recipes, world
from longclip_lab.evaluation.records import commit
from longclip_lab.files import atomic_write, to_json
from longclip_lab.models import Clip, load, stretch
from longclip_lab.probing import counterfactual_probe, effective_length
from longclip_lab.reproduction.report import write_report
from longclip_lab.reproduction.results import ModelRow, QuickstartResults, score_row
from longclip_lab.training import train

KEEP, RATIO = 20, 4
STRETCHINGS = {"not stretched": "none", "linear": "linear", "KPS": "kps", "keep + random": "random"}
FINE_TUNINGS = {
    "long only": {"objective": "long"},
    "long + 0.1 short": {"objective": "mixed", "short_weight": 0.1},
    "long + 1.0 short": {"objective": "mixed", "short_weight": 1.0},
    "long + short, PCM": {"objective": "longclip", "short_weight": 1.0},
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything: enough for clear intervals in five minutes on two cores."""

    probed_pairs: int = 500
    questions: int = 1200
    training_pairs: int = 3000
    steps: int = 40
    batch_size: int = 64
    warmup_steps: int = 8


def run(
    out: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    announce: Callable[[str], None] = lambda text: None,
    sizes: Sizes | None = None,
) -> QuickstartResults:
    """Run the lesson; with `out`, write `report.html` and `results.json` there.

    `announce` is called with one sentence before every part. `seed` orders the training pairs.
    """
    began = time.perf_counter()
    sizes = sizes or Sizes()
    clip = load("tiny")
    probed = world.pairs(sizes.probed_pairs, seed=world.PROBE_SEED)
    questions = world.counterfactuals(sizes.questions)
    announce("1/4  What does the bundled CLIP read?")
    before = effective_length(clip, probed, progress=progress)
    probes = {clip.name: counterfactual_probe(clip, questions, progress=progress)}

    announce("2/4  Stretch 77 positions to 248, four ways, and evaluate each without training")
    stretched = {
        label: stretch(clip, KEEP, RATIO, method=method) for label, method in STRETCHINGS.items()
    }
    rows = [
        score_row(
            model,
            label,
            "start" if label == "not stretched" else "stretched",
            progress=progress,
        )
        for label, model in stretched.items()
    ]

    announce("3/4  Fine-tune the KPS model on long captions, with and without short ones")
    tuned = fine_tune_all(stretched["KPS"], sizes, seed, progress)
    rows += [row for _, row in tuned.values()]

    announce("4/4  What does the fine-tuned model read?")
    best = max(tuned, key=lambda label: _mean_recall(tuned[label][1]))
    model = tuned[best][0]
    after = effective_length(model, probed, progress=progress)
    probes[best] = counterfactual_probe(model, questions, progress=progress)
    facts = _facts(seed, sizes, time.perf_counter() - began)
    results = QuickstartResults(rows, before, after, probes, best, facts)
    if out is not None:
        atomic_write(Path(out) / "results.json", to_json(results.to_dict(), indent=1) + "\n")
        write_report(results, Path(out) / "report.html")
    return results


def fine_tune_all(
    clip: Clip, sizes: Sizes, seed: int, progress: bool
) -> dict[str, tuple[Clip, ModelRow]]:
    """Every entry of FINE_TUNINGS: the trained model and its row, from the same pairs and seed."""
    base = replace(
        recipes.longclip("tiny"),
        steps=sizes.steps,
        batch_size=sizes.batch_size,
        warmup_steps=sizes.warmup_steps,
        pairs=sizes.training_pairs,
        seed=seed,
    )
    data = world.pairs(base.pairs, seed=world.TRAIN_SEED, siblings=base.hard_negative_group)
    tuned = {}
    for label, change in FINE_TUNINGS.items():
        found = train(clip, replace(base, name=label, **change), data, progress=progress)
        row = score_row(found.model, label, "fine-tuned", run=found, progress=progress)
        tuned[label] = (found.model, row)
    return tuned


def _mean_recall(row: ModelRow) -> float:
    """R@1, the mean over long and short captions and both directions."""
    scores = (row.long_i2t, row.long_t2i, row.short_i2t, row.short_t2i)
    return sum(score.value for score in scores) / len(scores)


def _facts(seed: int, sizes: Sizes, seconds: float) -> dict:
    return {
        "command": "longclip-lab quickstart",
        "seed": seed,
        "seconds": round(seconds, 1),
        "commit": commit(),
        "longclip_lab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "sizes": asdict(sizes),
    }
