"""Gradient caching: any micro-batch, any number of processes, the same loss and gradients."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest
import torch

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.training import Recipe, recipe_for, train
from tests.training import gradients as one_step

QUICK = {"batch_size": 8, "steps": 1, "warmup_steps": 0, "k": 4, "tensorboard": False}
LONGCLIP = Recipe(**QUICK, objective="longclip", hard_negative_group=2)
UNLOCKED = {"lock_image": False, "cache_image_features": False}


def family(method: str, **changes) -> Recipe:
    return replace(recipe_for(method), **{**QUICK, "text_tower": "world", **changes})


CASES = {
    "pcm": LONGCLIP,
    "mixed": replace(LONGCLIP, objective="mixed"),
    "clip": family("clip", captions="both"),
    "siglip": family("siglip"),
    "lotlip": family("lotlip", **UNLOCKED),
    "filip": family("filip"),
    "pcm by SVD, of the whole batch": replace(
        LONGCLIP, match_official=True, pca_scope="batch", hard_negative_group=1
    ),
}
SHARDED = {
    "pcm": replace(LONGCLIP, sharding="full"),
    "pcm, cached": replace(LONGCLIP, sharding="full", micro_batch=3, grad_checkpointing=True),
    "siglip": family("siglip", sharding="full"),
    "lotlip": family("lotlip", sharding="full", **UNLOCKED),
    "lotlip, cached": family("lotlip", sharding="full", micro_batch=2, **UNLOCKED),
}
ONE_PROCESS = {
    "pcm, as the official code does it": replace(
        LONGCLIP, match_official=True, hard_negative_group=1
    ),
    "lotlip, locked": family("lotlip", cache_image_features=False),
    "lotlip, no mask": family("lotlip", mask=False, **UNLOCKED),
}


@pytest.fixture(scope="module")
def web():
    return world.web_pairs(16, seed=5, siblings=2)


@pytest.fixture(scope="module")
def whole(web):
    return {
        name: one_step.gradients(recipe, web) for name, recipe in {**CASES, **ONE_PROCESS}.items()
    }


def assert_same(found, expected):
    loss, grads = found
    expected_loss, expected_grads = expected
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert grads.keys() == expected_grads.keys()
    largest = max(float(grad.abs().max()) for grad in expected_grads.values())
    for name, grad in expected_grads.items():
        assert torch.allclose(grads[name], grad, rtol=1e-4, atol=1e-5 * largest), name


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("name", [*CASES, *ONE_PROCESS])
def test_any_micro_batch_gives_the_gradient_of_the_whole(name, size, web, whole):
    recipe = replace({**CASES, **ONE_PROCESS}[name], micro_batch=size)
    found = one_step.gradients(recipe, web)
    assert_same(found, whole[name])
    assert "logit_scale" in found[1]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_and_micro_batches_together(processes, web, whole, tmp_path, in_processes):
    cases = dict(CASES)
    if processes == 2:
        cases |= {f"{name}, cached": replace(r, micro_batch=3) for name, r in CASES.items()}
        cases |= {f"{name}, sharded": recipe for name, recipe in SHARDED.items()}
    else:
        cases = {f"{name}, cached": replace(r, micro_batch=1) for name, r in CASES.items()}
    request = tmp_path / "request.pickle"
    request.write_bytes(pickle.dumps((web, cases)))
    in_processes(processes, one_step.__file__, request, tmp_path / "found.pt")
    for name, found in torch.load(tmp_path / "found.pt", weights_only=True).items():
        assert_same(found, whole[re.sub(", (cached|sharded)", "", name)])


def test_the_second_pass_draws_the_numbers_of_the_first(web):
    """With dropout: one micro-batch of all pairs is the plain step, to the last digits."""
    recipe = CASES["pcm"]
    found = []
    for size in (None, 8):
        clip = one_step.start(recipe)
        clip.model.transformer.resblocks[0].mlp.append(torch.nn.Dropout(0.5))
        found.append(one_step.gradients(replace(recipe, micro_batch=size), web, clip))
    assert_same(*found)
    without = one_step.gradients(recipe, web)
    assert without[0] != pytest.approx(found[0][0], rel=1e-5)


@pytest.mark.parametrize("name", ["pcm", "siglip", "lotlip"])
def test_mixed_precision_is_cached_as_it_is_computed_at_once(name, web, whole):
    """The towers in bfloat16, the loss on their features in float32, either way."""
    recipe = replace(CASES[name], precision="bf16")
    loss, grads = one_step.gradients(recipe, web)
    cached_loss, cached = one_step.gradients(replace(recipe, micro_batch=3), web)
    # bfloat16 has 8 bits; the same features, whatever the micro-batch, but for its rounding.
    assert cached_loss == pytest.approx(loss, rel=2e-3)
    assert loss != pytest.approx(whole[name][0], rel=1e-6)
    for found, limit in ((cached, 0.02), (whole[name][1], 0.05)):
        flat, other = (
            torch.cat([side[key].flatten() for key in sorted(grads)]) for side in (grads, found)
        )
        assert float((flat - other).norm() / flat.norm()) < limit


def test_accumulating_losses_is_another_gradient(web, whole):
    """What a small batch repeated gives: fewer negatives, so another loss."""
    small = one_step.gradients(replace(CASES["clip"], batch_size=4), web)
    assert small[0] != pytest.approx(whole["clip"][0], rel=0.05)


def test_a_run_may_go_on_with_another_micro_batch(few, tiny, tmp_path):
    recipe = replace(LONGCLIP, hard_negative_group=1, steps=2, checkpoint_every=1)
    plain = train(tiny, recipe, few, progress=False)
    cached = train(tiny, replace(recipe, micro_batch=3), few, out=tmp_path / "run", progress=False)
    again = train(
        tiny, replace(recipe, micro_batch=2), few, out=tmp_path / "run", resume=True, progress=False
    )
    for one, other in zip(plain.history, cached.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    for one, other in zip(
        again.model.model.parameters(), cached.model.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_stops_before_the_second_pass(few, tiny):
    recipe = replace(
        LONGCLIP, hard_negative_group=1, steps=1, micro_batch=4, start_logit_scale=200.0
    )
    with pytest.raises(LabError, match="Step 1: the loss is"):
        train(tiny, recipe, few, progress=False)


def test_a_micro_batch_of_none_is_refused():
    with pytest.raises(LabError, match="micro_batch"):
        replace(LONGCLIP, micro_batch=0)
