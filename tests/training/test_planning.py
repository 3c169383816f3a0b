"""Plans: formulas against what torch counts and keeps, predictions against the papers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longclip_lab import models
from longclip_lab.cli import main
from longclip_lab.errors import LabError
from longclip_lab.models.build import build_model
from longclip_lab.training import recipe_for
from longclip_lab.training.plan import (
    GPUS,
    LONGCLIP_TIME,
    LOTLIP_TIME,
    PAPERS_RATE,
    comparison,
    cost_of,
    model_cost,
    plan,
)

SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 96, "vocab_size": 500, "width": 128, "heads": 2, "layers": 4},
}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return build_model(SMALL).train()


def kept_by(run, module):
    """Bytes that autograd keeps of a forward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held, seen = [], {}

    def pack(tensor):
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    assert out is not None
    return sum(seen.values())


def test_operations_are_those_that_torch_counts(small):
    cost = cost_of(small, 64)
    pixels, ids = torch.rand(1, 3, 64, 64), torch.full((1, 96), 7)
    for tower, run in ((cost.image, lambda: small.encode_image(pixels)),
                       (cost.text, lambda: small.encode_text(ids))):  # fmt: skip
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        # The projection into the shared space is left out.
        assert tower.flops() == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_layer_keeps_what_autograd_keeps(tower, half, small):
    blocks = (small.visual if tower == "image" else small).transformer.resblocks
    cost = getattr(cost_of(small, 64), tower)
    inputs = torch.randn(16, 512, cost.width, requires_grad=True)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return blocks[0](inputs)

    copies = 2 * sum(p.numel() for p in blocks[0].parameters()) if half else 0
    found = kept_by(run, blocks[0]) - copies
    assert 16 * cost.activations(512, half) == pytest.approx(found, rel=0.05)


def test_the_weights_are_counted_and_a_lock_leaves_the_image_tower_out(small):
    cost = cost_of(small, 64)
    assert cost.weights == sum(p.numel() for p in small.parameters())
    locked = cost_of(small, 64, lock_image=True)
    assert locked.trained == cost.weights - sum(p.numel() for p in small.visual.parameters())


def test_published_sizes_without_building_anything():
    b16 = model_cost(recipe_for("longclip", "paper"), "ViT-B-16")
    assert (b16.image.tokens, b16.text.tokens) == (197, 248)
    # 17.5 GMACs of a ViT-B/16 at 224 pixels (open_clip's docs/model_profile.csv, ViT-B-16).
    assert b16.image.flops() / 2e9 == pytest.approx(17.5, rel=0.02)
    lotlip = model_cost(recipe_for("lotlip", "paper"))
    size = models.TextTowerSize(12, 768, 3072, None, pooler=False)
    assert lotlip.text.flops(128) == models.text_flops(size, 128)
    assert lotlip.trained == lotlip.text.weights


def test_time_follows_from_operations():
    recipe = recipe_for("lotlip", "paper", data="100M")
    one = plan(recipe, "A100:1", 100_000_000)
    eight = plan(recipe, "A100:8", 100_000_000)
    assert one.hours == pytest.approx(8 * eight.hours)
    assert one.dollars == pytest.approx(eight.dollars)
    assert one.hours == pytest.approx(one.flops / (312e12 * 0.3) / 3600)
    small = plan(recipe_for("lotlip", "paper"), "A100:1", 3_000_000)
    # "The training duration decreases linearly with the amount of training data" (section 7.5).
    assert one.hours / small.hours == pytest.approx(100 / 3, rel=0.02)


def test_both_papers_times_are_the_same_rate():
    for published in (LONGCLIP_TIME, LOTLIP_TIME):
        assert published.rate == pytest.approx(PAPERS_RATE, rel=0.01)


def test_the_papers_times_follow_from_the_papers_rate():
    """LoTLIP: 133 A100 days for 100M (section 7.5); Long-CLIP: half an hour on 8 (issue 99)."""
    recipe = replace(recipe_for("lotlip", "paper", data="100M"), cache_image_features=False)
    lotlip = plan(recipe, "A100:8", 100_000_000)
    assert lotlip.gpu_days < 20
    assert lotlip.as_published.gpu_days == pytest.approx(133, rel=0.01)
    longclip = plan(recipe_for("longclip", "paper", "paper"), "A100:8", 1_245_901, "ViT-B-16")
    assert longclip.as_published.hours == pytest.approx(0.5, rel=0.01)
    assert str(longclip.as_published).endswith("no slower")


def test_pictures_that_arrive_slowly_are_waited_for():
    recipe = recipe_for("longclip", "paper", "paper")
    fast = plan(recipe, "A100:8", 1_000_000, "ViT-B-16")
    slow = plan(recipe, "A100:8", 1_000_000, "ViT-B-16", data_throughput=fast.rate / 3)
    assert slow.hours == pytest.approx(3 * fast.hours)
    assert slow.flops == fast.flops
    enough = plan(recipe, "A100:8", 1_000_000, "ViT-B-16", data_throughput=fast.rate * 3)
    assert enough.hours == fast.hours


def test_spot_machines_are_slower_and_cheaper():
    recipe = replace(recipe_for("longclip", "paper"), checkpoint_minutes=10)
    made = plan(recipe, "A100:8", 1_000_000, "ViT-B-16")
    spot = plan(recipe, "A100:8", 1_000_000, "ViT-B-16", spot=True)
    # 15 minutes to the next step and 5 of work, every 6 hours.
    assert spot.hours / made.hours == pytest.approx(1 + 20 / 60 / 6)
    assert spot.dollars / made.dollars == pytest.approx(0.5 * (1 + 20 / 60 / 6))
    assert "taken away every 6 hours" in str(spot)


def test_memory_grows_with_the_micro_batch_and_the_largest_fits():
    recipe = recipe_for("longclip", "paper")
    made = plan(recipe, "4090:1", 1_000_000, "ViT-L-14")
    fits = made.largest_micro_batch
    assert 1 < fits < recipe.batch_size
    assert made.memory(fits) <= 0.9 * 24 < made.memory(fits + 1)
    unsaved = plan(replace(recipe, grad_checkpointing=False), "4090:1", 1_000_000, "ViT-L-14")
    assert unsaved.largest_micro_batch < fits
    cached = replace(recipe, micro_batch=fits)
    assert plan(cached, "4090:1", 1_000_000, "ViT-L-14").flops > made.flops


def test_every_gpu_stands_in_the_table():
    made = plan(recipe_for("longclip", "paper"), "L4:2", 1_000_000, "ViT-B-16", dollars=0.5)
    table = comparison(made)
    assert len(table) == len(GPUS)
    assert table.loc["2 x L4", "dollars"] == round(2 * made.hours * 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "A10:8"}, "Did you mean A100"),
        ({"gpus": "A100:zero"}, "NAME:COUNT"),
        ({"gpus": "A100:3"}, "shared out to 3 GPUs"),
        ({"mfu": 1.5}, "from 0.001 to 1; came 1.5"),
        ({"data_throughput": 0}, "from 0.001 to .* came 0"),
        ({"dollars": 1e308}, "price"),
        ({"mfu": 1e-320}, "utilisation"),
        ({"data_throughput": float("inf")}, "arrive in a second must be a finite number"),
        ({"pairs": None}, "--pairs"),
        ({"pairs": 0}, "pairs must be a whole number from 1"),
        (
            {"dollars": float("nan")},
            "price .* must be a finite number from 0 to 1,000,000; came nan",
        ),
        ({"dollars": -1}, "price"),
        ({"long_tokens": 0}, "tokens of a long text must be a whole number from 3"),
        ({"short_tokens": -4}, "tokens of a short text"),
        ({"gpus": "A100:0"}, "count from 1"),
        ({"gpus": "A100:²"}, "count from 1"),
        ({"model": "ViT-B-17"}, "no architecture"),
        ({"model": None}, "trains a model that is given"),
    ],
)
def test_bad_input(options, message):
    options = {"gpus": "A100:8", "pairs": 10_000, "model": "ViT-B-16", **options}
    with pytest.raises(LabError, match=message):
        plan(recipe_for("longclip", "paper"), **options)


def test_the_command_prints_assumptions_and_a_table(capsys):
    assert main(["plan", "lotlip", "--dataset-size", "12M", "--gpus", "H100:8"]) == 0
    out = capsys.readouterr().out
    assert "assumed: 12,000,000 pairs" in out
    assert "8 x 4090" in out
