"""What a step is predicted to hold, against what torch's own tracker sees of a real step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from longclip_lab import models, world
from longclip_lab.training import new_model, recipe_for
from longclip_lab.training.loop import Loop
from longclip_lab.training.plan import cost_of, memory_of, model_cost, step_memory
from longclip_lab.training.run import source_of

# In parts, as on a GPU, which is what is predicted.
TINY = replace(recipe_for("longclip"), pairs=64, batch_size=64, length_buckets=4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"grad_checkpointing": True}, {"captions": "long", "objective": "clip"}],
    ids=["plain", "checkpointing", "long captions only"],
)
def test_a_step_holds_what_is_predicted(changes):
    clip = models.stretch(models.load("tiny"))
    recipe = replace(TINY, **changes)
    pairs = source_of(clip, world.pairs(64, seed=1), recipe)
    loop = Loop(Accelerator(cpu=True), clip, recipe, 2, None)
    (batch,) = pairs.batches(0, 1)
    loop.step(batch)  # from now on the optimizer has its moments
    tracker = MemTracker()
    tracker.track_external(loop.towers, loop.optimizer, batch.pixels_B3HW)
    with tracker:
        loop.step(batch)
    found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    read = [texts for texts in (batch.long, batch.short) if texts is not None]
    lengths = [int(texts.lengths_B.float().mean()) for texts in read]
    predicted = step_memory(cost_of(clip.model, 128), recipe, lengths)
    assert predicted.total == pytest.approx(found, rel=0.1)


def test_a_share_of_the_weights_where_they_are_sharded():
    recipe = recipe_for("longclip", "paper")
    cost = model_cost(recipe, "ViT-L-14")
    alone, shared, sharded = (
        step_memory(cost, replace(recipe, sharding=kind), [248, 32], processes)
        for kind, processes in (("none", 1), ("none", 8), ("full", 8))
    )
    assert alone.moments == shared.moments == 8 * cost.trained == pytest.approx(8 * sharded.moments)
    assert shared.gradients == 2 * alone.gradients == pytest.approx(16 * sharded.gradients)
    assert sharded.weights < shared.weights
    assert shared.activations == sharded.activations == pytest.approx(alone.activations / 8)
    cached = step_memory(cost, replace(recipe, sharding="full"), [248, 32], 8, micro_batch=32)
    assert cached.gradients == alone.gradients
    assert cached.activations == sharded.activations // 8


def test_with_gradient_caching_the_loss_is_done_before_the_activations_come():
    recipe = replace(recipe_for("lotlip", "paper", data="100M"), cache_image_features=False)
    cost = model_cost(recipe)
    whole, cached = (step_memory(cost, recipe, [128, 32], 1, size) for size in (None, 64))
    assert whole.total == sum(whole.parts.values())
    assert cached.loss == whole.loss > cached.activations
    assert cached.total == sum(cached.parts.values()) - cached.activations


def test_processes_share_the_table_of_logits():
    """[G / W, G] for each direction; of SigLIP no more than a chunk."""
    lotlip = replace(recipe_for("lotlip", "paper", data="100M"), cache_image_features=False)
    siglip = replace(recipe_for("siglip", "paper", data="100M"), cache_image_features=False)
    G = lotlip.batch_size
    for recipe, expected in (
        (lotlip, [4 * 4 * G**2 * 4, 6 * 4 * G // 16 * G * 4]),
        (siglip, [4 * 4 * 2**24 * 2, 4 * 4 * G // 16 * G * 2]),
    ):
        cost = model_cost(recipe)
        found = [step_memory(cost, recipe, [128, 32], processes, 64) for processes in (1, 16)]
        assert [one.loss for one in found] == expected


def test_of_a_model_at_hand():
    recipe = recipe_for("lotlip")
    clip = new_model(recipe)
    stored = memory_of(clip, recipe)
    run_anew = memory_of(clip, replace(recipe, cache_image_features=False))
    weights = [p.numel() for p in clip.model.parameters()]
    assert stored.weights == pytest.approx(4 * sum(weights))
    assert stored.moments < 8 * sum(weights)
    assert run_anew.activations > stored.activations
    assert run_anew.batch - stored.batch == 128 * (4 * 3 * 72**2 - 4 * 128)


def test_nothing_is_predicted_of_towers_of_another_kind():
    clip = models.load("tiny")
    clip.model.visual = nn.Linear(2, 2)
    assert memory_of(clip, TINY) is None


def test_filip_compares_tokens_and_holds_more():
    recipe = recipe_for("filip", "paper")
    cost = model_cost(recipe)
    filip, clip = (
        step_memory(cost, replace(recipe, objective=objective), [32]).loss
        for objective in ("filip", "clip")
    )
    assert filip - clip == 3 * 4 * 64 * 2560 * 197 * 32
