"""A run that is killed again and again ends as if nothing had happened; `make faults` does more."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from longclip_lab import cli
from longclip_lab.training import Recipe, train
from longclip_lab.training.checkpoints import checkpoint_paths, save_checkpoint
from tests.training import kills


def test_kills_at_random_moments_change_nothing(tmp_path):
    steps = {"steps": 30, "every": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(list(map(str, kills.train(**steps, out=whole)))) == 0
    command = list(map(str, kills.train(**steps, out=killed)))
    run = kills.Disturbed(killed, [command], np.random.default_rng(6), span=3.0, forked=True)
    kills.disturb(run, ["writing", "any time", "going"], whole)
    assert run.struck.total() == 3
    assert run.codes == {-9: 3}


def test_a_kill_before_the_record_is_written_is_no_obstacle(tiny, few, tmp_path):
    recipe = Recipe(batch_size=8, steps=1, warmup_steps=0, k=4, tensorboard=False)
    left = [
        tmp_path / ".run.json.x7.part",
        tmp_path / "checkpoints" / ".step-000001.part" / "state.pt",
        tmp_path / "model" / ".model.safetensors.x8.part",
    ]
    left[0].write_text('{"recipe"')
    train(tiny, recipe, few, out=tmp_path, resume=True, progress=False)
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("cut sh")
    train(tiny, recipe, few, out=tmp_path, resume=True, progress=False)
    kills.assert_whole(tmp_path)
    assert not [name for name in kills.files(tmp_path) if ".part" in name]


def test_a_checkpoint_that_is_deleted_by_half_looks_like_none(tmp_path, monkeypatch):
    def killed(path):
        (path / "state.pt").unlink()
        raise KeyboardInterrupt

    weights = {"w": torch.zeros(1)}
    for step in (999_998, 999_999):
        save_checkpoint(tmp_path, step, weights, {}, keep=2)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: path.exists() and killed(path))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 1_000_000, weights, {}, keep=2)
    kills.assert_whole(tmp_path)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-999999", "step-1000000"]


def test_checkpoints_have_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, keep=2)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}
