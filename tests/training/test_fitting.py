"""The dry run: what it finds fits, a little more does not, by torch's own tracker."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed._tools.mem_tracker import MemTracker

from longclip_lab import models, world
from longclip_lab.cli import main
from longclip_lab.errors import LabError
from longclip_lab.training import largest_micro_batch, memory_of, new_model, recipe_for
from longclip_lab.training.loop import Loop
from longclip_lab.training.plan import FIRST, Trial, search
from longclip_lab.training.run import source_of

LONGCLIP = replace(
    recipe_for("longclip"), batch_size=64, captions="long", objective="long", hard_negative_group=1
)


@pytest.fixture(scope="module")
def clip():
    return models.stretch(models.load("tiny"))


def held(clip, recipe, pairs: int) -> float:
    """Bytes at the peak of a step on so many pairs, all of whose texts are as long as is read."""
    data = world.pairs(pairs, seed=1)
    data = replace(data, long=[" ".join([text] * 20) for text in data.long])
    recipe = replace(recipe, batch_size=pairs, micro_batch=None)
    source = source_of(clip, data, recipe)
    loop = Loop(Accelerator(cpu=True), clip, recipe, 2, None)
    (batch,) = source.batches(0, 1)
    loop.step(batch)
    tracker = MemTracker()
    tracker.track_external(loop.towers, loop.optimizer, batch.pixels_B3HW)
    with tracker:
        loop.step(batch)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def test_what_is_found_fits_and_a_little_more_does_not(clip):
    memory = 0.1e9
    fit = largest_micro_batch(clip, LONGCLIP, memory=memory)
    assert 8 < fit.largest < 64
    assert f"hold --micro-batch {fit.largest} of 64 pairs" in str(fit)
    for one in fit.tried:
        assert one.measured == pytest.approx(one.predicted, rel=0.2)
    # Beside the micro-batch the pictures of the whole batch wait.
    waiting = memory_of(clip, LONGCLIP).batch
    assert held(clip, LONGCLIP, fit.largest) + waiting < 1.02 * memory
    assert held(clip, LONGCLIP, round(1.15 * fit.largest)) + waiting > memory


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
