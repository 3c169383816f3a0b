"""The loop and its towers: it learns, it records, it refuses, and a kill changes nothing."""

from __future__ import annotations

import copy
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
from safetensors.torch import save_file
from torch import nn

from longclip_lab import models
from longclip_lab.cli import STOPPED
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.training import Recipe, train
from longclip_lab.training.checkpoints import claim, load_checkpoint
from longclip_lab.training.data import CaptionSampler
from longclip_lab.training.loop import (
    KeptPositions,
    RunLog,
    Towers,
    encode_in_buckets,
    parameter_groups,
    prepare,
)
from longclip_lab.training.streaming import read_broken
from tests.processes import run_script
from tests.training.runs import same, script, weights

# --- The loop: it learns, it records, it refuses, and a kill changes nothing ---

QUICK = Recipe(
    name="quick",
    batch_size=8,
    steps=6,
    warmup_steps=0,
    learning_rate=1e-3,
    k=4,
    checkpoint_every=2,
    tensorboard=False,
)


def run(clip, few, recipe=QUICK, **options):
    return train(clip, recipe, few, progress=False, **options)


def test_training_lowers_the_loss_and_leaves_the_given_model_alone(tiny, few):
    before = weights(tiny)
    trained = run(tiny, few, replace(QUICK, steps=12, objective="mixed"))
    losses = [row["loss"] for row in trained.history]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert same(before, weights(tiny))
    assert not same(before, weights(trained.model))
    assert not trained.model.model.training
    assert trained.model.name == f"{tiny.name}+quick"
    assert trained.model.card["fine_tuned"][0]["data"] == few.source
    assert "fine_tuned" not in tiny.card


def test_the_same_short_caption_is_no_negative_of_itself(tiny, few):
    recipe = replace(QUICK, steps=1, hard_negative_group=2, objective="mixed")
    official = replace(recipe, mask_duplicates=False)
    twins = replace(few, short=[few.short[i // 2] for i in range(len(few.short))])

    def short_loss(data, how):
        return run(tiny, data, how).history[0]["loss_short"]

    assert short_loss(twins, recipe) < short_loss(twins, official)
    assert short_loss(few, recipe) == pytest.approx(short_loss(few, official), rel=1e-6)


def test_kept_positions_do_not_move(tiny, few):
    trained = run(tiny, few, replace(QUICK, weight_decay=0.5, match_official=True))
    before_TW = tiny.model.positional_embedding
    after_TW = trained.model.model.positional_embedding
    assert torch.equal(after_TW[:20], before_TW[:20])
    assert not torch.equal(after_TW[20:40], before_TW[20:40])


def test_history_has_what_a_plot_needs(tiny, few):
    history = run(tiny, few, replace(QUICK, steps=3)).history
    assert [row["step"] for row in history] == [1, 2, 3]
    for row in history:
        assert row["loss"] == pytest.approx(row["loss_long"] + row["loss_short"], rel=1e-5)
        assert 0 < row["variance_kept"] < 1
        assert row["samples_per_s"] > 0
        assert row["grad_norm"] > 0
    assert [row["lr"] for row in history] == [QUICK.learning_rate_at(s, 3) for s in range(3)]


def test_the_seed_decides_everything(tiny, few):
    first, again = run(tiny, few), run(tiny, few)
    other = run(tiny, few, replace(QUICK, seed=1))
    assert same(weights(first.model), weights(again.model))
    assert not same(weights(first.model), weights(other.model))


def test_the_callers_random_numbers_are_left_alone(tiny, few):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(tiny, few, replace(QUICK, steps=1))
    assert torch.equal(torch.rand(2), expected)


def test_gradient_checkpointing_changes_nothing(tiny, few):
    # Texts in the same parts: AdamW makes much of what rounding does to a gradient of zero.
    plain = run(tiny, few, replace(QUICK, steps=2, length_buckets=4))
    checkpointed = run(
        tiny, few, replace(QUICK, steps=2, length_buckets=4, grad_checkpointing=True)
    )
    for name, tensor in weights(plain.model).items():
        assert torch.allclose(tensor, weights(checkpointed.model)[name], atol=1e-5), name


def test_the_folder_holds_log_events_checkpoints_and_a_loadable_model(tiny, few, tmp_path):
    trained = run(tiny, few, replace(QUICK, tensorboard=True), out=tmp_path / "run")
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == trained.history
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000006"]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"]["learning_rate"] == 1e-3
    assert record["data"] == few.source
    assert record["num_truncated"] == {"long": 0, "short": 0}
    assert same(weights(models.load(tmp_path / "run" / "model")), weights(trained.model))


def test_a_run_that_was_killed_ends_at_the_same_bits(tiny, few, tmp_path):
    codes, said = run_script(*script(tmp_path, QUICK, few, kill_after=5))
    assert codes == [-signal.SIGKILL], said
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000004"]
    assert not (tmp_path / "run" / "model").exists()

    resumed = run(tiny, few, out=tmp_path / "run", resume=True)
    whole = run(tiny, few)
    assert same(weights(resumed.model), weights(whole.model))
    assert [row["step"] for row in resumed.history] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_resuming_a_finished_run_gives_its_model_again(tiny, few, tmp_path):
    first = run(tiny, few, out=tmp_path / "run")
    again = run(tiny, few, out=tmp_path / "run", resume=True)
    assert same(weights(first.model), weights(again.model))
    assert again.history == first.history


def test_a_line_that_the_kill_cut_short_is_dropped(tiny, few, tmp_path):
    run(tiny, few, out=tmp_path / "run")
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    again = run(tiny, few, out=tmp_path / "run", resume=True)
    assert [row["step"] for row in again.history] == [1, 2, 3, 4, 5, 6]


GARBAGE = [b"\xff\xfe{\0", b"\x89PNG\r\n\x1a\n", b"[]\n", b"1" * 4400 + b"\n", b'{"step": "1"}\n']


NO_NUMBERS = [b'{"step": 1, "loss": "low"}\n', b'{"step": 1, "loss": ' + b"9" * 400 + b"}\n"]


@pytest.mark.parametrize("content", [*GARBAGE, *NO_NUMBERS, b'{"step": 1, "lo\n{"step": 2}\n'])
def test_a_log_that_is_none_is_named_and_left_alone(content, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content + b'{"step": 3}\n')
    with pytest.raises(LabError, match=r"log\.jsonl"):
        RunLog(tmp_path, 5, tensorboard=False)
    assert path.read_bytes() == content + b'{"step": 3}\n'


@pytest.mark.parametrize("content", [*GARBAGE, b'{"recipe": 3}', b""])
def test_a_record_that_is_none_is_named_and_left_alone(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(LabError, match=r"run\.json.*give another folder"):
        claim(tmp_path, {"recipe": {}, "data": {}, "start": ""}, {}, resume=True)
    assert (tmp_path / "run.json").read_bytes() == content


@pytest.mark.parametrize("content", [*GARBAGE[:-1], b'{"a": 1}'])
def test_broken_pairs_that_are_none_are_named(content, tmp_path):
    path = tmp_path / "broken" / "process-00000.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LabError, match=r"process-00000\.json"):
        read_broken(path)


def test_a_state_of_another_form_is_named(tiny, tmp_path):
    save_file(tiny.model.state_dict(), tmp_path / "model.safetensors")
    optimizer = torch.optim.SGD(tiny.model.parameters(), lr=1)
    for state in ([1], {"step": None, "optimizer": {}}, {"step": 1, "optimizer": 3}):
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(LabError, match="cannot be read"):
            load_checkpoint(tmp_path, copy.deepcopy(tiny.model), optimizer)


def test_nothing_is_overwritten(tiny, few, tmp_path):
    out = tmp_path / "run"
    run(tiny, few, out=out)
    with pytest.raises(LabError, match=r"already holds this run.*--resume"):
        run(tiny, few, out=out)
    for resume in (False, True):
        with pytest.raises(LabError, match=r"different run \(seed: 0 there, 1 now\)"):
            run(tiny, few, replace(QUICK, seed=1), out=out, resume=resume)
    with pytest.raises(LabError, match="other data"):
        run(tiny, replace(few, source={"hash": "1"}), out=out, resume=True)
    with pytest.raises(LabError, match="other starting weights"):
        run(models.stretch(models.new_tiny(seed=2)), few, out=out, resume=True)


def test_a_folder_of_something_else_is_refused(tiny, few, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(LabError, match="not empty and holds no run"):
        run(tiny, few, out=tmp_path, resume=True)
    with pytest.raises(LabError, match="is a file"):
        run(tiny, few, out=tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_named(tiny, few, tmp_path):
    run(tiny, few, out=tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-000006" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LabError, match=r"step-000006 cannot be read.*the one before"):
        run(tiny, few, out=tmp_path / "run", resume=True)


def test_a_checkpoint_with_code_in_it_is_refused(tiny, few, tmp_path):
    run(tiny, few, out=tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-000006" / "state.pt"
    torch.save({"step": print}, path)
    with pytest.raises(LabError, match="step-000006 cannot be read"):
        run(tiny, few, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_vanishes_is_named_in_one_line(tiny, few, tmp_path, workers):
    paths = [tmp_path / f"{i}.png" for i in range(len(few.images))]
    with pytest.raises(LabError, match=r"^There is no picture .*\.png\.$"):
        run(tiny, replace(few, images=paths), replace(QUICK, workers=workers))


def test_a_run_that_ends_in_its_warm_up_warns(tiny, few):
    with pytest.warns(LabWarning, match="2 steps ends within its warm-up of 2"):
        run(tiny, few, replace(QUICK, steps=2, warmup_steps=2))


def test_a_diverged_run_stops_and_keeps_its_last_checkpoint(tiny, few, tmp_path):
    wild = replace(QUICK, learning_rate=1e6, checkpoint_every=1)
    with pytest.raises(LabError, match=r"Step \d+: .*The last good checkpoint is .*step-0000"):
        run(tiny, few, wild, out=tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_data_that_do_not_fit_the_recipe(tiny, few):
    with pytest.raises(LabError, match=r"batch of 100 is larger than the data, 24 pairs"):
        run(tiny, few, replace(QUICK, batch_size=100))
    with pytest.raises(LabError, match="no data of its own"):
        train(tiny, replace(QUICK, pairs=None), progress=False)


def test_the_worlds_fine_tuning_set_is_the_default(tiny):
    trained = train(tiny, replace(QUICK, steps=1, pairs=8, batch_size=8), progress=False)
    assert trained.model.card["fine_tuned"][0]["data"]["dataset"] == "world"
    assert trained.folder is None


# --- The towers in training: exact text parts, weight decay, frozen statistics, kept positions ---


@pytest.mark.parametrize("parts", [1, 3, 4, 24])
def test_parts_change_nothing_but_the_time(tiny, few, parts):
    texts, _ = CaptionSampler(tiny, Recipe()).tokenize(few.long)
    alone_BD = torch.cat([tiny.encode_text(ids_T[None]) for ids_T in texts.padded(0)])
    assert torch.allclose(encode_in_buckets(tiny.model, texts, parts), alone_BD, atol=1e-5)


def names_by_decay(model, recipe):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, recipe)
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_decay_spares_norms_biases_positions_and_scale_unless_match_official(tiny):
    decayed, spared = names_by_decay(tiny.model, Recipe())
    assert {"logit_scale", "positional_embedding", "ln_final.weight"} <= spared
    assert {"visual.trunk.pos_embed", "transformer.resblocks.0.mlp.c_fc.bias"} <= spared
    assert {"token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight"} <= decayed
    everything, nothing = names_by_decay(tiny.model, Recipe(match_official=True))
    assert nothing == set()
    assert everything == decayed | spared


def test_locked_weights_are_not_given_to_the_optimizer(tiny):
    model = copy.deepcopy(tiny.model)
    model.visual.requires_grad_(False)
    decayed, spared = names_by_decay(model, Recipe())
    assert not any(name.startswith("visual") for name in decayed | spared)


def test_logit_scale_starts_where_the_recipe_says(tiny):
    def start(recipe):
        clip = replace(tiny, model=copy.deepcopy(tiny.model))
        return prepare(clip, recipe).model.logit_scale.item()

    assert start(Recipe()) == tiny.model.logit_scale.item()
    assert start(Recipe(match_official=True)) == pytest.approx(math.log(100))
    assert start(Recipe(match_official=True, start_logit_scale=2.0)) == 2.0


def test_running_statistics_stay_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    towers = Towers(model, Recipe()).train()
    before = model[1].running_mean.clone()
    model(torch.randn(2, 3, 8, 8))
    assert towers.training
    assert model[0].training
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize(("freeze", "moved"), [(True, 0), (False, 20)])
def test_kept_positions_hold_still_even_under_weight_decay(tiny, freeze, moved):
    clip = replace(tiny, model=copy.deepcopy(tiny.model))
    positions_TW = clip.model.positional_embedding
    before_TW = positions_TW.detach().clone()
    kept = KeptPositions(clip, Recipe(freeze_kept=freeze))
    optimizer = torch.optim.AdamW([positions_TW], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        positions_TW.grad = torch.ones_like(positions_TW)
        kept.clear_gradient()
        optimizer.step()
        kept.restore()
    changed_T = (positions_TW != before_TW).any(dim=1)
    assert int(changed_T[:20].sum()) == moved
    assert bool(changed_T[20:].all())


@pytest.mark.parametrize("changes", [{"length_buckets": 4}, {"grad_checkpointing": True}])
def test_texts_end_to_end_change_nothing_but_the_time(tiny, few, changes):
    recipe = replace(Recipe(), **changes)
    texts, _ = CaptionSampler(tiny, Recipe()).tokenize(few.long)
    packed, by_parts = (
        prepare(replace(tiny, model=copy.deepcopy(tiny.model)), r) for r in (Recipe(), recipe)
    )
    assert packed.packs
    assert not by_parts.packs
    one, other = (towers.text_features(texts).pooled_BD for towers in (packed, by_parts))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- Faults: a machine that is taken away, batches whose loss is not a number ---

NO_CHECKPOINTS = Recipe(
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
    request.write_bytes(pickle.dumps((SimpleNamespace(**vars(few)), NO_CHECKPOINTS)))
    arguments = [sys.executable, "-c", TAKEN_AWAY, str(request), str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
    assert done.returncode == STOPPED == 75, done.stderr[-2000:]
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    (name,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    # The signal comes while step 3 is told, so it is heard after step 4.
    assert name == "step-000004"
    resumed = train(tiny, NO_CHECKPOINTS, few, out=tmp_path / "run", resume=True, progress=False)
    whole = train(tiny, NO_CHECKPOINTS, few, progress=False)
    for one, other in zip(
        resumed.model.model.parameters(), whole.model.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_the_handler_of_before_is_there_again(tiny, few):
    before = signal.getsignal(signal.SIGTERM)
    train(tiny, replace(NO_CHECKPOINTS, steps=1), few, progress=False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_by_the_clock(tiny, few, tmp_path):
    recipe = replace(NO_CHECKPOINTS, checkpoint_minutes=1e-6, keep_checkpoints=9, steps=3)
    train(tiny, recipe, few, out=tmp_path / "run", progress=False)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000001", "step-000002", "step-000003"]


@pytest.fixture
def poisoned(few, monkeypatch):
    """Data of which pair 5 makes a loss that is not a number; stands for a broken kernel."""
    from longclip_lab.training.data import TrainingPairs

    plain = TrainingPairs.read_images

    def read_images(self, indices):
        pixels_B3HW = plain(self, indices).clone()
        for row, index in enumerate(indices):
            if index == 5:
                pixels_B3HW[row] = np.nan
        return pixels_B3HW

    monkeypatch.setattr(TrainingPairs, "read_images", read_images)
    return few


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_loss_that_is_no_number_names_its_pairs(micro_batch, tiny, poisoned, tmp_path):
    recipe = replace(NO_CHECKPOINTS, micro_batch=micro_batch)
    with pytest.raises(LabError, match=r"Step \d+: .*named in .*not-finite"):
        train(tiny, recipe, poisoned, out=tmp_path / "run", progress=False)
    (path,) = (tmp_path / "run" / "not-finite").iterdir()
    facts = json.loads(path.read_text())
    assert 5 in facts["pairs"]
    assert len(facts["pairs"]) == 8
    assert f"step-{facts['step']:06d}.json" == path.name


def test_as_many_batches_as_allowed_are_skipped_and_counted(tiny, poisoned, tmp_path):
    # 24 pairs in batches of 8: pair 5 comes once in every three steps.
    recipe = replace(NO_CHECKPOINTS, max_nan_steps=2)
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
