"""Arms by content: what shares a run and what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from longclip_lab.errors import LabError
from longclip_lab.reproduction.arms import TRUNKS, Arm
from longclip_lab.reproduction.experiments import EXPERIMENTS, experiment
from longclip_lab.training.recipes import filip, longclip

RECIPE = replace(longclip("tiny"), steps=3, warmup_steps=1, batch_size=8, pairs=16, k=2)
ARM = Arm("micro", RECIPE, start="tiny", stretch="kps")


KEYS = Path(__file__).with_name("arm_keys.json")
"""Folders of the ledger's arms and trunks, of seed 0, from before fields were renamed."""


def test_arms_of_the_ledger_keep_their_names():
    found = {
        name: {e.label: e.arm.key(0) for e in experiment(name).entries} for name in EXPERIMENTS
    }
    found["trunks"] = {name: trunk.key() for name, trunk in TRUNKS.items()}
    assert found == json.loads(KEYS.read_text(encoding="utf-8"))


def test_names_and_display_do_not_make_another_arm():
    for change in ({"name": "x"}, {"log_every": 5}, {"checkpoint_every": 1}, {"workers": 2}):
        assert ARM.change(**change).key(0) == ARM.key(0)


def test_everything_else_does():
    others = [
        ARM.change(learning_rate=1e-4),
        ARM.change(pairs=17),
        replace(ARM, suite="stretching"),
        replace(ARM, stretch="linear"),
        replace(ARM, start="tiny-notail"),
        replace(ARM, keep=10),
    ]
    keys = {arm.key(0) for arm in (ARM, *others)}
    assert len(keys | {ARM.key(1)}) == len(others) + 2


def test_seeds_do_not_count_where_nothing_is_drawn():
    untrained = Arm("micro", start="tiny", stretch="kps")
    assert untrained.key(0) == untrained.key(1)
    drawn = replace(untrained, stretch="random")
    assert drawn.key(0) != drawn.key(1)


def test_only_arms_of_late_interaction_say_how_they_are_asked():
    """Others keep the name, and the results, that they had before there was a choice."""
    assert "asked" not in ARM.identity(0)
    token_wise = Arm("micro", filip("tiny")).identity(0)
    assert token_wise["asked"] == "late interaction"


def test_an_arm_that_starts_from_nothing_is_refused():
    with pytest.raises(LabError, match="a recipe, or a model"):
        Arm("micro")
    with pytest.raises(LabError, match="no recipe to change"):
        Arm("micro", start="tiny").change(steps=2)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_whole(name):
    """Labels and columns of claims exist, the paper's lines are found, no arm stands twice."""
    one = experiment(name)
    assert one.name == name
    for entry in one.entries:
        for column in one.columns:
            one.published(entry.label, column.name)
    keys = [entry.arm.key(0) for entry in one.entries]
    assert len(set(keys)) == len(keys)
    assert one.claims
    assert all(entry.arm.suite == one.entries[0].arm.suite for entry in one.entries)


def test_unknown_experiments_list_near_ones():
    with pytest.raises(LabError, match="Did you mean longclip/pcm"):
        experiment("longclip/pmc")
