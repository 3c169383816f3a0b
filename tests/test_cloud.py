"""The cloud tasks: their training commands are commands, and say what the plan beside them says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from longclip_lab import cli
from longclip_lab.commands_plan import PlanRun
from longclip_lab.commands_training import Train
from longclip_lab.training.recipes import recipe_for

TASKS = sorted((Path(__file__).parents[1] / "cloud").glob("*.yaml"))


def trained_by(path):
    """The recipe that a task's training command makes, and its options."""
    run = yaml.safe_load(path.read_text(encoding="utf-8"))["run"].replace("\\\n", " ")
    arguments = shlex.split(run.partition("longclip_lab.cli ")[2])
    command = cli._parse(arguments)
    assert isinstance(command, Train)
    default = recipe_for(command.method, command.scale, command.preset, command.data_scale)
    return command, command.recipe.checked(default)


def test_there_are_tasks():
    assert len(TASKS) >= 7


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_trains_and_can_be_started_again(path):
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    command, recipe = trained_by(path)
    assert command.resume
    assert recipe.checkpoint_minutes
    assert str(command.out).startswith("/runs/")
    assert task["name"] == path.stem == command.out.name
    gpus = task["num_nodes"] * int(task["resources"]["accelerators"].partition(":")[2])
    assert recipe.batch_size % gpus == 0
    assert task["resources"]["use_spot"] == ("spot" in path.stem)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_the_plan_in_its_head_is_of_the_same_run(path):
    text = path.read_text(encoding="utf-8")
    head, launch = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    planned = cli._parse(shlex.split(head)[1:])
    assert isinstance(planned, PlanRun)
    command, recipe = trained_by(path)
    task = yaml.safe_load(text)
    gpus = task["num_nodes"] * int(task["resources"]["accelerators"].partition(":")[2])
    assert planned.gpus == f"A100:{gpus}"
    assert (planned.method, planned.data_scale) == (command.method, command.data_scale)
    assert planned.micro_batch == recipe.micro_batch
    assert planned.store_features == recipe.store_features
    if command.method == "longclip":
        assert planned.model == command.model
    assert f"cloud/{path.name}" in launch
