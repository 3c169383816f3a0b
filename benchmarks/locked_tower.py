"""An epoch under a locked image tower: features stored once, against pictures through the tower.

    python benchmarks/locked_tower.py                       # the tiny tower, lotlip's own recipe
    python benchmarks/locked_tower.py --method lit          # alt-texts alone: less text to train on
    python benchmarks/locked_tower.py --tower ViT-B/16 --pairs 32 --batch 16 --repetitions 1

Both sides train the same steps in one run, alternating: texts drawn, text tower, loss, backward,
AdamW; the only difference is `cache_image_features`. The world's texts go through the world's
BERT on both towers; the weights of ViT-B/16 are random, which costs no other time. Prints one JSON
object:
`step_ratio` is of median step times, waiting for pictures included, and both losses must agree;
`picture_ratio` is of the picture side alone, an epoch of features read against made. How far the
first falls behind the second is the text tower's share, which nothing here saves: a tiny text tower
that is trained costs more than a tiny image tower that is only run. Storing costs one pass over the
pictures, `store_seconds`, once for all epochs and runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from longclip_lab import training, world
from longclip_lab.models import Clip
from longclip_lab.training.data import Batch, StepSampler, TrainingPairs
from longclip_lab.training.loop import prepare

AGREE = 1e-3


def step_seconds(run: training.Run) -> list[float]:
    """Seconds of each step but the first, which warms up."""
    return [run.recipe.batch_size / row["samples_per_s"] for row in run.history[1:]]


def picture_seconds(
    clip: Clip, recipe: training.Recipe, data: world.WebPairs, stored: np.ndarray | None
) -> float:
    """Seconds of one epoch's image features, read or made."""
    pairs = TrainingPairs(clip, data, recipe, stored)
    towers = prepare(clip, recipe)
    steps = len(pairs) // recipe.batch_size
    sampler = StepSampler(recipe, pairs.lengths, 0, steps)
    began = time.perf_counter()
    with torch.no_grad():
        for rows in sampler:
            pictures = pairs.pictures(rows)
            which = {"stored_BS": pictures} if stored is not None else {"pixels_B3HW": pictures}
            towers.image_features(Batch(**{"pixels_B3HW": None, **which}, long=None, short=None))
    return time.perf_counter() - began


def on_disk(data: world.WebPairs, folder: Path, size: int) -> world.WebPairs:
    """The same data as JPEG files of `size` pixels, as photographs come."""
    paths = [folder / f"{i:05d}.jpg" for i in range(len(data))]
    for path, values in zip(paths, data.images, strict=True):
        Image.fromarray(values).resize((size, size)).save(path, quality=90)
    return replace(data, images=paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tower", default="tiny-tower")
    parser.add_argument("--method", default="lotlip", choices=["lotlip", "lit", "register"])
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args()
    is_tiny = options.tower == "tiny-tower"
    recipe = replace(
        training.recipe_for(options.method),
        batch_size=options.batch,
        steps=None,
        epochs=options.epochs,
        warmup_steps=1,
        learning_rate=1e-5,
        image_tower=options.tower,
        pretrained_towers=is_tiny,
    )
    clip = training.new_model(recipe)
    data = world.web_pairs(options.pairs)
    with TemporaryDirectory() as folder:
        if not is_tiny:
            data = on_disk(data, Path(folder), clip.image_size)
        began = time.perf_counter()
        features = training.stored_features(clip, data.images, Path(folder) / "store")
        store_seconds = time.perf_counter() - began
        seconds: dict[bool, list[float]] = {True: [], False: []}
        pictures: dict[bool, list[float]] = {True: [], False: []}
        losses: dict[bool, list[float]] = {}
        for _ in range(options.repetitions):
            for stores in (True, False):
                how = replace(recipe, cache_image_features=stores)
                store = Path(folder) / "store"
                run = training.train(clip, how, data, progress=False, features=store)
                seconds[stores] += step_seconds(run)
                array = features if stores else None
                pictures[stores].append(picture_seconds(clip, how, data, array))
                losses[stores] = [row["loss"] for row in run.history]
    difference = float(np.abs(np.subtract(losses[True], losses[False])).max())
    if difference > AGREE:
        raise SystemExit(f"the two runs differ: losses {losses}")
    medians = {stores: statistics.median(values) for stores, values in seconds.items()}
    result = {
        "benchmark": "locked_tower",
        "tower": options.tower,
        "method": options.method,
        "pairs": options.pairs,
        "batch": options.batch,
        "steps": len(losses[True]) * options.repetitions,
        "threads": torch.get_num_threads(),
        "stored_bytes_per_picture": features.nbytes // len(features),
        "store_seconds": store_seconds,
        "stored_step_seconds": medians[True],
        "computed_step_seconds": medians[False],
        "step_ratio": medians[False] / medians[True],
        "picture_ratio": statistics.median(pictures[False]) / statistics.median(pictures[True]),
        "loss_difference": difference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
