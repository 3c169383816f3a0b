"""Faults: a machine that is taken away, batches whose loss is not a number."""

from __future__ import annotations

import json
import math
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longclip_lab.cli import STOPPED
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.training import Recipe, train
from longclip_lab.training.loop import RunLog

QUICK = Recipe(
    batch_size=8, steps=6, warmup_steps=0, learning_rate=1e-3, k=4, tensorboard=False,
    checkpoint_every=100,
)  # fmt: skip
TAKEN_AWAY = """
import os, pickle, signal, sys
from longclip_lab import cli
from longclip_lab import models, training

few, recipe = pickle.load(open(sys.argv[1], "rb"))

class Taken:
    def run(self):
        def take(row):
            if row["step"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        clip = models.stretch(models.new_tiny(seed=1))
        training.train(clip, recipe, few, out=sys.argv[2], progress=False, on_step=take)

cli._parse = lambda arguments: Taken()
sys.exit(cli.main())
"""


def test_a_sigterm_saves_says_so_and_exits_with_a_code_of_its_own(tiny, few, tmp_path):
    request = tmp_path / "few.pkl"
    request.write_bytes(pickle.dumps((SimpleNamespace(**vars(few)), QUICK)))
    arguments = [sys.executable, "-c", TAKEN_AWAY, str(request), str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
    assert done.returncode == STOPPED == 75, done.stderr[-2000:]
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    (name,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    # The signal comes while step 3 is told, so it is heard after step 4.
    assert name == "step-000004"
    resumed = train(tiny, QUICK, few, out=tmp_path / "run", resume=True, progress=False)
    whole = train(tiny, QUICK, few, progress=False)
    for one, other in zip(
        resumed.model.model.parameters(), whole.model.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_the_handler_of_before_is_there_again(tiny, few):
    before = signal.getsignal(signal.SIGTERM)
    train(tiny, replace(QUICK, steps=1), few, progress=False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_by_the_clock(tiny, few, tmp_path):
    recipe = replace(QUICK, checkpoint_minutes=1e-6, keep_checkpoints=9, steps=3)
    train(tiny, recipe, few, out=tmp_path / "run", progress=False)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000001", "step-000002", "step-000003"]


@pytest.fixture
def poisoned(few, monkeypatch):
    """Data of which pair 5 makes a loss that is not a number; stands for a broken kernel."""
    from longclip_lab.training.data import TrainingPairs

    plain = TrainingPairs.pictures

    def pictures(self, indices):
        pixels_B3HW = plain(self, indices).clone()
        for row, index in enumerate(indices):
            if index == 5:
                pixels_B3HW[row] = np.nan
        return pixels_B3HW

    monkeypatch.setattr(TrainingPairs, "pictures", pictures)
    return few


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_loss_that_is_no_number_names_its_pairs(micro_batch, tiny, poisoned, tmp_path):
    recipe = replace(QUICK, micro_batch=micro_batch)
    with pytest.raises(LabError, match=r"Step \d+: .*named in .*not-finite"):
        train(tiny, recipe, poisoned, out=tmp_path / "run", progress=False)
    (path,) = (tmp_path / "run" / "not-finite").iterdir()
    facts = json.loads(path.read_text())
    assert 5 in facts["pairs"]
    assert len(facts["pairs"]) == 8
    assert f"step-{facts['step']:06d}.json" == path.name


def test_as_many_batches_as_allowed_are_skipped_and_counted(tiny, poisoned, tmp_path):
    # 24 pairs in batches of 8: pair 5 comes once in every three steps.
    recipe = replace(QUICK, max_nan_steps=2)
    with pytest.warns(LabWarning, match="Skipped"):
        run = train(tiny, recipe, poisoned, out=tmp_path / "run", progress=False)
    assert len(run.skipped_steps) == 2
    told = {row["step"] for row in run.history}
    assert told == set(range(1, 7)) - set(run.skipped_steps)
    assert all(torch.isfinite(p).all() for p in run.model.model.parameters())
    with (
        pytest.warns(LabWarning, match="Skipped"),
        pytest.raises(LabError, match="not-finite"),
    ):
        train(tiny, replace(recipe, max_nan_steps=1), poisoned, out=tmp_path / "b",
              progress=False)  # fmt: skip


def test_what_is_no_number_is_null_in_the_log_and_nan_again(tmp_path):
    log = RunLog(tmp_path, 0, tensorboard=False)
    log.add({"step": 1, "loss": 0.5, "variance_kept": math.nan, "samples_per_s": math.inf})
    log.close()
    line = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert line == '{"step": 1, "loss": 0.5, "variance_kept": null, "samples_per_s": null}\n'
    (row,) = RunLog(tmp_path, 1, tensorboard=False).history
    assert math.isnan(row["variance_kept"])
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8") == line
