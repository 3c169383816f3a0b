"""Loss and gradients of one step of several methods, in one process or in each of many.

    python gradients.py REQUEST OUT
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 gradients.py REQUEST OUT

REQUEST is a pickle of data and cases; OUT gets what `gradients` gives, from the first process.
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from longclip_lab import models
from longclip_lab.training import Recipe, new_model
from longclip_lab.training.data import StepSampler, TrainingPairs
from longclip_lab.training.distributed import whole
from longclip_lab.training.loop import Loop, needs


def start(recipe: Recipe):
    """A new model for the recipe, without dropout: its draw depends on how a batch is cut."""
    if recipe.image_tower is None:
        clip = models.stretch(models.new_tiny(seed=1))
    else:
        clip = new_model(recipe)
    for module in clip.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return clip


def gradients(recipe: Recipe, data, clip=None):
    """Loss and, by name, the gradient of every trained weight, of the recipe's first batch."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=needs(recipe, "tokens"))
    accelerator = Accelerator(kwargs_handlers=[unused])
    # Without momentum and with a rate that changes nothing, the gradient is all that is left.
    recipe = replace(recipe, learning_rate=1e-30, weight_decay=0.0, steps=1, warmup_steps=0)
    clip = start(recipe) if clip is None else clip
    loop = Loop(accelerator, clip, recipe, 1, None)
    pairs = TrainingPairs(clip, data, recipe)
    rank, processes = accelerator.process_index, accelerator.num_processes
    (rows,) = StepSampler(recipe, pairs.lengths, 0, 1, rank, processes)
    row = loop.step(pairs.__getitems__(rows))
    found = {
        name: whole(parameter.grad).clone()
        for name, parameter in clip.model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }
    return row["loss"], found


def main(request: str, out: str) -> None:
    with open(request, "rb") as file:
        data, cases = pickle.load(file)
    assert Accelerator().num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    found = {name: gradients(recipe, data) for name, recipe in cases.items()}
    if Accelerator().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
