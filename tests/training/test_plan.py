"""Plans: formulas against what torch counts and keeps, predictions against the papers, dry runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longclip_lab import models, world
from longclip_lab.cli import main
from longclip_lab.errors import LabError
from longclip_lab.models.build import build_model
from longclip_lab.training import largest_micro_batch, new_model, recipe_for
from longclip_lab.training.loop import Loop
from longclip_lab.training.plan import (
    FIRST,
    GPUS,
    LONGCLIP_TIME,
    LOTLIP_TIME,
    PAPERS_RATE,
    Trial,
    comparison,
    cost_of,
    memory_of,
    model_cost,
    plan,
    search,
    step_memory,
)
from longclip_lab.training.run import source_of

# --- Plans: formulas against what torch counts and keeps, predictions against the papers ---

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


# --- What a step is predicted to hold, against what torch's own tracker sees of a real step ---


def held(clip, recipe, data):
    """Bytes at the peak of a step on all of `data`, and the batch, by torch's own tracker."""
    recipe = replace(recipe, batch_size=len(data.images), micro_batch=None)
    source = source_of(clip, data, recipe)
    loop = Loop(Accelerator(cpu=True), clip, recipe, 2, None)
    (batch,) = source.batches(0, 1)
    loop.step(batch)  # from now on the optimizer has its moments
    tracker = MemTracker()
    tracker.track_external(loop.towers, loop.optimizer, batch.pixels_B3HW)
    with tracker:
        loop.step(batch)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"], batch


# In parts, as on a GPU, which is what is predicted.
TINY = replace(recipe_for("longclip"), pairs=64, batch_size=64, length_buckets=4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"grad_checkpointing": True}, {"captions": "long", "objective": "clip"}],
    ids=["plain", "checkpointing", "long captions only"],
)
def test_a_step_holds_what_is_predicted(changes):
    clip, recipe = models.stretch(models.load("tiny")), replace(TINY, **changes)
    found, batch = held(clip, recipe, world.pairs(64, seed=1))
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


# --- The dry run: what it finds fits, a little more does not, by torch's own tracker ---

LONGCLIP = replace(
    recipe_for("longclip"), batch_size=64, captions="long", objective="long", hard_negative_group=1
)


@pytest.fixture(scope="module")
def clip():
    return models.stretch(models.load("tiny"))


def long_ones(pairs: int) -> world.WorldPairs:
    """Pairs all of whose texts are as long as is read."""
    data = world.pairs(pairs, seed=1)
    return replace(data, long=[" ".join([text] * 20) for text in data.long])


def test_what_is_found_fits_and_a_little_more_does_not(clip):
    memory = 0.1e9
    fit = largest_micro_batch(clip, LONGCLIP, memory=memory)
    assert 8 < fit.largest < 64
    assert f"hold --micro-batch {fit.largest} of 64 pairs" in str(fit)
    for one in fit.tried:
        assert one.measured == pytest.approx(one.predicted, rel=0.2)
    # Beside the micro-batch the pictures of the whole batch wait.
    waiting = memory_of(clip, LONGCLIP).batch
    assert held(clip, LONGCLIP, long_ones(fit.largest))[0] + waiting < 1.02 * memory
    assert held(clip, LONGCLIP, long_ones(round(1.15 * fit.largest)))[0] + waiting > memory


def test_a_batch_that_fits_needs_no_gradient_caching(clip):
    fit = largest_micro_batch(clip, replace(LONGCLIP, batch_size=16), processes=2)
    assert fit.largest == fit.share == 8
    assert str(fit).endswith("hold all 8 pairs of a process: no --micro-batch needed")


def test_too_little_memory_is_said(clip):
    fit = largest_micro_batch(clip, LONGCLIP, memory=1e6)
    assert fit.largest is None
    assert str(fit).endswith("0.001 GB are too few for 2 pairs at a time")


def test_locked_towers_read_stored_features():
    recipe = replace(recipe_for("lotlip"), text_tower="world", batch_size=64)
    clip = new_model(recipe)
    memory = 0.7 * memory_of(clip, recipe).total
    fit = largest_micro_batch(clip, recipe, memory=memory)
    assert 8 < fit.largest < 64
    assert fit.tried[-1].measured == pytest.approx(fit.tried[-1].predicted, rel=0.2)


@settings(deadline=None, max_examples=100)
@given(
    floor=st.integers(0, 10_000),
    base=st.integers(0, 5_000),
    each=st.integers(1, 100),
    wrong=st.floats(0.8, 1.25),
    share=st.integers(1, 4_096),
    memory=st.integers(100, 50_000),
)
def test_the_search_is_careful_and_comes_near(floor, base, each, wrong, share, memory):
    """`floor`: the optimizer's step, below which memory does not grow and shows nothing."""

    def measured(size):
        return max(floor, base + each * size)

    def predict(size):
        return base + round(wrong * each * size)

    def step(size):
        return Trial(size, measured(size), predict(size))

    fit = search(step, predict, share, memory)
    fitting = [size for size in range(1, share + 1) if measured(size) <= memory]
    if fit.largest is None:
        assert len(fitting) < min(FIRST, share)
        return
    assert fit.largest == max(one.micro_batch for one in fit.tried if one.measured <= memory)
    assert max(one.micro_batch for one in fit.tried) <= 4 * fitting[-1]
    assert fit.largest >= 0.75 * fitting[-1] - 1


@pytest.mark.parametrize(
    ("processes", "memory", "words"),
    [(3, None, "cannot be shared out to 3 processes"), (1, 1e15, "`longclip-lab plan` predicts")],
)
def test_what_cannot_be_tried_is_refused(clip, processes, memory, words):
    with pytest.raises(LabError, match=words):
        largest_micro_batch(clip, LONGCLIP, processes, memory)


def test_the_command_predicts_and_does_not_train(tmp_path, capsys):
    options = ["--batch-size", "16", "--memory", "0.1", "--out", str(tmp_path / "run")]
    assert main(["train", "longclip", "--dry-run", *options]) == 0
    said = capsys.readouterr().out
    assert "memory, predicted: " in said
    assert "0.100 GB hold --micro-batch " in said
    assert not (tmp_path / "run").exists()


def test_the_command_trains_in_processes(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--processes", "2", "--steps", "2", "--warmup-steps", "0", "--pairs", "16"]
    sizes = ["--batch-size", "8", "--k", "3", "--no-tensorboard", "--no-progress"]
    assert main(["train", "longclip", *options, *sizes, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "GB a process for 4 pairs at a time" in said
    assert "step 2, loss" in said
    assert models.load(out / "model").name.endswith("longclip-tiny-repository")
