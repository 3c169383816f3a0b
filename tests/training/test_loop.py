"""The loop: it learns, it records, it refuses, and a kill changes nothing."""

from __future__ import annotations

import copy
import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from longclip_lab import models
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.training import Recipe, train
from longclip_lab.training.checkpoints import claim, load_checkpoint
from longclip_lab.training.loop import RunLog
from longclip_lab.training.streaming import read_broken
from tests.processes import run_script
from tests.training.runs import same, script, weights

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
