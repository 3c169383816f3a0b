"""Small experiments from end to end: arms shared and kept, interruptions, records, the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from longclip_lab.cli import main
from longclip_lab.errors import LabError
from longclip_lab.reproduction import bookkeeping
from longclip_lab.reproduction import bookkeeping as running
from longclip_lab.reproduction import runs as making
from longclip_lab.reproduction.arms import Arm
from longclip_lab.reproduction.experiment import Claim, Column, Entry, Experiment
from longclip_lab.reproduction.experiments import EXPERIMENTS
from longclip_lab.training import recipes
from longclip_lab.training.recipes import longclip

RECIPE = replace(
    longclip("tiny"), steps=4, warmup_steps=1, batch_size=8, pairs=16, k=2, checkpoint_every=2
)
TUNED = Arm("micro", RECIPE, start="tiny", stretch="kps")
COLUMNS = (
    Column("long", "long captions, R@1", ("long, surveyor",), "lotlip/table2", ("DCI T2I",)),
    Column("short", "short captions, R@1", ("short",)),
)


def small(name: str = "test/small", **change) -> Experiment:
    fields = {
        "name": name,
        "title": "A small experiment",
        "source": "a paper, Table 9",
        "columns": COLUMNS,
        "entries": [
            Entry("start", Arm("micro", start="tiny"), {"method": "LiT", "long_texts": False}),
            Entry("tuned", TUNED, {"method": "LiT", "long_texts": True}),
            Entry("long only", TUNED.change(objective="long")),
        ],
        "claims": [
            Claim("Long texts help", "tuned", "higher", "start", "long", "a paper"),
            Claim("PCM is above the sweep", "tuned", "higher", ("long only", "start"), "long",
                  along="short"),
        ],
        "seeds": 2,
    }  # fmt: skip
    return Experiment(**(fields | change))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("arms")


@pytest.fixture(scope="module")
def record(home):
    return running.reproduce(small(), arms=home, progress=False)


def test_a_record_holds_the_papers_numbers_and_ours(record):
    assert record.line("tuned").published == {"long": 47.96, "short": None}
    assert record.claims[0].published == pytest.approx(47.96 - 27.14)
    assert record.line("long only").is_baseline
    assert record.claims[1].is_control
    assert record.seeds == [0, 1]
    assert set(record.line("start").by_seed) == {"long", "short"}
    assert "long only" in record.table().index
    assert list(record.findings()["verdict"]) == [claim.words for claim in record.claims]


def test_its_numbers_are_those_of_the_hits(record, home):
    keys = record.line("tuned").keys
    hits = [np.load(home / key / making.HITS)["long, surveyor"].mean() for key in keys]
    assert record.line("tuned").ours["long"].value == pytest.approx(100 * np.mean(hits))


def test_arms_are_made_once_for_all_experiments(record, home, monkeypatch):
    def train(*_, **__):
        raise AssertionError("an arm that is there was trained again")

    monkeypatch.setattr(making, "train", train)
    again = running.reproduce(small("test/other"), arms=home, progress=False)
    assert again.lines == record.lines
    assert running.left_to_make(small(), arms=home) == 0
    assert running.left_to_make(small(seeds=3), arms=home) == 2  # the start is drawn from nothing


def test_an_interrupted_arm_goes_on_and_ends_the_same(tmp_path):
    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = making.make(TUNED, 0, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        making.make(TUNED, 0, tmp_path / "halves", stop)
    assert making.made(TUNED, 0, tmp_path / "halves") is None
    seen: list[int] = []
    halves = making.make(TUNED, 0, tmp_path / "halves", seen.append)
    assert seen == [3, 4]  # the checkpoint after step 2 was there
    for name, hits in whole.hits.items():
        assert np.array_equal(halves.hits[name], hits)
    assert halves.facts["last"]["loss"] == whole.facts["last"]["loss"]
    assert halves.seconds > 0


def test_arms_of_a_trunk_start_from_it_with_their_own_tokens(tmp_path):
    recipe = replace(
        recipes.lotlip("tiny"), image_tower=None, text_tower=None, token_limit=None, pairs=16,
        steps=2, warmup_steps=1, batch_size=8,
    )  # fmt: skip
    arm = Arm("micro", recipe, start="micro-trunk")
    assert arm.identity(0)["start"]["recipe"]["pairs"] == 16
    plain = making._start(arm.change(num_corner=0), 0, tmp_path).model.state_dict()
    limited = making._start(arm.change(num_corner=3, token_limit=40), 0, tmp_path)
    assert limited.context_length == 40
    assert limited.model.text.corner_embedding.shape[0] == 3
    register = arm.change(objective="register", mask=False)
    assert making._start(register, 0, tmp_path).model.text.corner.kind == "register"
    state = limited.model.state_dict()
    assert all(np.array_equal(state[name], tensor) for name, tensor in plain.items())
    found = making.make(arm, 0, tmp_path)
    assert set(found.hits) == {"long, surveyor", "short", "kind", "colour", "thing"}
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_a_damaged_arm_is_made_again(home, record, tmp_path):
    key = record.line("start").keys[0]
    arm = small().entry("start").arm
    hits = home / key / making.HITS
    content = hits.read_bytes()
    hits.write_bytes(content[: len(content) // 2])
    assert making.made(arm, 0, home) is None
    asked = {"long, surveyor", "short", "kind", "colour", "thing"}
    assert set(making.make(arm, 0, home).hits) == asked


@pytest.mark.parametrize("content", ["[]", "{}", '{"seconds": NaN}', "1" * 5000])
def test_an_arm_whose_result_is_garbage_is_made_again(home, record, content):
    key = record.line("start").keys[0]
    result = home / key / making.RESULT
    before = result.read_text()
    result.write_text(content)
    assert making.made(small().entry("start").arm, 0, home) is None
    result.write_text(before)


def test_the_ledger_gives_back_what_was_written(record, tmp_path):
    assert bookkeeping.write(record, tmp_path)
    found = bookkeeping.read_all(tmp_path)[record.name]
    assert found.to_dict() == record.to_dict()
    assert found.claims[0].verdict == record.claims[0].verdict
    rows = bookkeeping.ledger(tmp_path)
    assert list(rows["claim"]) == [claim.text for claim in record.claims]
    assert bookkeeping.record_of(record.name, tmp_path).lines[1].label == "tuned"


def test_the_ledger_keeps_the_record_with_more_seeds(record, home, tmp_path):
    assert bookkeeping.write(record, tmp_path)
    fewer = running.reproduce(small(), seeds=1, arms=home, progress=False)
    assert not bookkeeping.write(fewer, tmp_path)
    assert len(bookkeeping.read_all(tmp_path)[record.name].seeds) == 2
    assert fewer.verdict == "not testable at this scale"


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"{", b"[]", b'{"name": "x"}', b"1" * 5000])
def test_a_damaged_ledger_says_so(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(LabError, match=r"x\.json holds no ledger record"):
        bookkeeping.read_all(tmp_path)


def test_an_empty_ledger_is_an_empty_table(tmp_path):
    assert len(bookkeeping.ledger(tmp_path)) == 0
    with pytest.raises(LabError, match="no record of 'lotlip/table3'"):
        bookkeeping.record_of("lotlip/table3", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claims": [Claim("x", "tunde", "higher", "start", "long")]}, "Did you mean tuned"),
        ({"claims": [Claim("x", "tuned", "higher", "start", "lang")]}, "Did you mean long"),
        ({"claims": [Claim("x", "tuned", "higher", ("start",), "long")]}, "along which column"),
        ({"entries": [Entry("start", TUNED)] * 2}, "two lines"),
    ],
)
def test_experiments_that_make_no_sense_are_refused(change, message):
    with pytest.raises(LabError, match=message):
        small(**change)


def test_no_seeds_are_no_experiment(home):
    with pytest.raises(LabError, match="seeds must be a whole number from 1"):
        running.reproduce(small(), seeds=0, arms=home)


@pytest.fixture
def only_small(monkeypatch, home, record):
    """The command with one experiment, whose arms are made, and no ledger of its own to write."""
    monkeypatch.setitem(EXPERIMENTS, "test/small", small)
    monkeypatch.setattr(bookkeeping, "is_writable", lambda: False)


def test_the_command_tells_the_table_and_the_verdicts(only_small, home, tmp_path, capsys):
    arguments = ["reproduce", "test/small", "--arms", str(home), "--out", str(tmp_path)]
    assert main([*arguments, "--no-progress"]) == 0
    told = capsys.readouterr().out
    assert "Long texts help" in told
    assert "long only" in told
    stored = json.loads((tmp_path / "test-small.json").read_text())
    assert stored["name"] == "test/small"


def test_the_command_lists_experiments_and_their_state(only_small, home, capsys):
    assert main(["reproduce", "--list", "--arms", str(home)]) == 0
    told = capsys.readouterr().out
    assert "longclip/stretching" in told
    assert f"6 of 6 arms in {home}" in told
    assert main(["reproduce", "--list", "--arms", str(home), "--json"]) == 0
    states = {state["name"]: state for state in json.loads(capsys.readouterr().out)}
    assert (states["test/small"]["made"], states["test/small"]["arms"]) == (6, 6)
    assert states["longclip/stretching"]["ledger"]["seeds"] == 3


def test_the_command_names_near_experiments(capsys):
    assert main(["reproduce", "longclip/stretch"]) == 2
    assert "Did you mean longclip/stretching" in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert "--list" in capsys.readouterr().err
