"""One tiny fine-tuning step: texts laid end to end without padding, against all padded to 248.

    python benchmarks/finetuning_step.py

Both do the same step on the same batch of the world: 128 pictures with a long and a short caption,
image tower, text tower, PCM loss, backward, AdamW. The peer runs open_clip's own `encode_text`,
which takes texts of the full context length only. Prints one JSON object; the ratio is of medians
over alternating repetitions, and the two losses must agree.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from longclip_lab import models, training, world
from longclip_lab.models import Clip
from longclip_lab.objectives import longclip_loss
from longclip_lab.training.data import Batch, TrainingPairs
from longclip_lab.training.loop import parameter_groups, prepare
from longclip_lab.training.recipes import Recipe

REPETITIONS = 5
AGREE = 1e-4


def make_step(clip: Clip, recipe: Recipe, encode: Callable) -> Callable[[], float]:
    """A function that does one training step and returns its loss."""
    towers = prepare(clip, recipe)
    optimizer = torch.optim.AdamW(parameter_groups(towers, recipe), lr=0.0)

    def step() -> float:
        loss = longclip_loss(*encode(towers), k=recipe.k).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def ours(batch: Batch) -> Callable:
    def encode(towers):
        seen = towers(batch)
        texts = seen.long.pooled_BD, seen.short.pooled_BD
        return seen.image.features_BD, *texts, seen.logit_scale

    return encode


def padded(clip: Clip, batch: Batch, data) -> Callable:
    long_BT, short_BT = (clip.tokenize(texts).ids_BT for texts in (data.long, data.short))

    def encode(towers):
        model = towers.model
        image_BD = model.encode_image(batch.pixels_B3HW)
        texts = (model.encode_text(tokens_BT) for tokens_BT in (long_BT, short_BT))
        return image_BD, *texts, model.logit_scale.exp()

    return encode


def main() -> None:
    recipe = training.longclip("tiny")
    clip = models.stretch(models.new_tiny())
    data = world.pairs(recipe.batch_size, seed=world.TRAIN_SEED)
    pairs = TrainingPairs(clip, data)
    batch = pairs.__getitems__(list(range(len(data))))
    twin = replace(clip, model=copy.deepcopy(clip.model))
    steps = {
        "ours": make_step(clip, recipe, ours(batch)),
        "padded": make_step(twin, recipe, padded(twin, batch, data)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses = {name: step() for name, step in steps.items()}
    for _ in range(REPETITIONS):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    difference = abs(losses["ours"] - losses["padded"])
    if difference > AGREE:
        raise SystemExit(f"the two steps differ: losses {losses}")
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    result = {
        "benchmark": "finetuning_step",
        "batch": recipe.batch_size,
        "context": clip.context_length,
        "long_tokens_mean": float(batch.long.lengths_B.double().mean()),
        "short_tokens_mean": float(batch.short.lengths_B.double().mean()),
        "threads": torch.get_num_threads(),
        **medians,
        "ratio": medians["padded_seconds"] / medians["ours_seconds"],
        "loss_difference": difference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
