"""`train(processes=2)`: the run of one process, whatever is shared out, and what a fault does."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from longclip_lab import models
from longclip_lab.errors import LabError, LabWarning, StoppedError
from longclip_lab.training import Recipe, train

QUICK = Recipe(
    name="quick",
    batch_size=8,
    steps=4,
    warmup_steps=0,
    learning_rate=1e-4,
    weight_decay=0.1,
    max_grad_norm=1.0,
    k=4,
    checkpoint_every=2,
    tensorboard=False,
)
SHARDED = replace(QUICK, sharding="full", micro_batch=3)


@pytest.fixture(scope="module")
def data(few):
    """The same pairs, of a class that other processes know."""
    return SimpleNamespace(**vars(few))


@pytest.fixture(scope="module")
def alone(tiny, data):
    return train(tiny, QUICK, data, progress=False)


@pytest.fixture(scope="module")
def sharded(tiny, data, tmp_path_factory):
    return run(tiny, data, SHARDED, out=tmp_path_factory.mktemp("sharded") / "run")


def run(tiny, data, recipe=QUICK, processes=2, **options):
    return train(tiny, recipe, data, progress=False, processes=processes, **options)


def assert_same_run(one, other, data):
    """Losses and what the models make of pictures and texts: rounding in gradients that are zero
    but for rounding is full steps to Adam, but no difference."""
    for row, expected in zip(one.history, other.history, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    for encode, what in ((models.encode_images, data.images), (models.encode_texts, data.long)):
        found, expected = (encode(trained.model, what) for trained in (one, other))
        found, expected = (getattr(f, "features_ND", f) for f in (found, expected))
        assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))


def spawned():
    """The training processes, in the order of their start."""
    children = psutil.Process().children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_two_processes_train_what_one_does_and_tell_of_it(tiny, data):
    rows, warming = [], replace(QUICK, warmup_steps=4)
    with pytest.warns(LabWarning, match="ends within its warm-up"):
        alone = train(tiny, warming, data, progress=False)
    with pytest.warns(LabWarning, match="ends within its warm-up"):
        both = run(tiny, data, warming, on_step=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows == both.history
    assert_same_run(both, alone, data)
    assert both.model.name == alone.model.name
    assert both.model.card["fine_tuned"] == alone.model.card["fine_tuned"]
    assert not both.model.model.training


def test_sharded_runs_are_those_of_one_process(tiny, data, alone, sharded):
    assert_same_run(sharded, alone, data)
    table_TW, before_TW = (c.model.positional_embedding for c in (sharded.model, tiny))
    assert torch.equal(table_TW[:20], before_TW[:20])


@pytest.mark.parametrize(("processes", "recipe"), [(1, QUICK), (2, SHARDED), (2, QUICK)])
def test_sharded_runs_go_on_with_any_number_of_processes(
    processes, recipe, tiny, data, alone, sharded, tmp_path
):
    shutil.copytree(sharded.folder, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "step-000004"
    assert last.exists()
    shutil.rmtree(last)
    again = run(tiny, data, recipe, processes, out=tmp_path / "run", resume=True)
    assert_same_run(again, alone, data)


def test_a_killed_process_ends_the_others_within_a_minute(tiny, data, tmp_path):
    died = []

    def kill(row):
        if row["step"] == 2:
            died.append(time.monotonic())
            spawned()[1].kill()

    many = replace(QUICK, steps=500)
    with pytest.raises(LabError, match=r"Process 1 of 2 was ended by SIGKILL.*--resume"):
        run(tiny, data, many, out=tmp_path / "run", on_step=kill)
    assert time.monotonic() - died[0] < 60
    assert spawned() == []
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_sigterm_reaches_all_processes_and_the_state_is_saved(tiny, data, tmp_path):
    def take_away(row):
        if row["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    slow = replace(QUICK, checkpoint_every=100)
    with pytest.raises(StoppedError, match="resume=True"):
        run(tiny, data, replace(slow, steps=400), out=tmp_path / "run", on_step=take_away)
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    done = int(path.name.removeprefix("step-"))
    assert 1 <= done < 400
    assert spawned() == []


def test_an_error_in_one_process_is_one_line(tiny, data, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(data.images))]
    with pytest.raises(LabError, match=r"^There is no picture .*\.png\.$"):
        run(tiny, SimpleNamespace(**{**vars(data), "images": paths}))


def test_what_cannot_be_launched_is_refused(tiny, data, monkeypatch):
    with pytest.raises(LabError, match="processes must be a whole number from 1 to 1,024; came 0"):
        run(tiny, data, processes=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LabError, match="already one of 2 processes"):
        run(tiny, data)
