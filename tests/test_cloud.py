"""The cloud tasks: their commands are commands, the plans beside them are of the same runs, and the
script that starts them does so here in processes of this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from longclip_lab import cli
from longclip_lab.commands_evaluation import Eval
from longclip_lab.commands_training import PlanRun, Train
from longclip_lab.data.benchmarks import get_protocol
from longclip_lab.training.plan import FILLED, GPUS
from longclip_lab.training.recipes import recipe_for

CLOUD = Path(__file__).parents[1] / "cloud"
TASKS = sorted(CLOUD.glob("*.yaml"))
TRAINED = [path for path in TASKS if "launch.sh train" in path.read_text(encoding="utf-8")]
BUCKET = "s3://a-bucket"


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(path):
    """What a task runs, as this library parses it; its variables as they are set in the task."""
    task = read(path)
    values = {name: value or BUCKET for name, value in task["envs"].items()}
    lines = task["run"].replace("\\\n", " ").splitlines()
    assert lines[0] == "source ~/venv/bin/activate"
    found = []
    for line in lines[1:]:
        program, _, rest = string.Template(line).substitute(values).partition(" ")
        if program == "set":
            assert rest == "-e"
            continue
        assert program in ("longclip-lab", "cloud/launch.sh")
        found.append(cli._parse(shlex.split(rest)))
    return found


def trained_by(path):
    """The recipe that a task's training command makes, and its options."""
    (command,) = commands(path)
    assert isinstance(command, Train)
    default = recipe_for(command.method, command.scale, command.preset, command.dataset_size)
    return command, command.recipe.checked(default)


def gpus_of(task):
    return task["num_nodes"] * int(task["resources"]["accelerators"].partition(":")[2])


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def test_there_are_tasks():
    assert len(TRAINED) >= 7
    assert len(TASKS) >= len(TRAINED) + 4


@named(TASKS)
def test_a_task_runs_commands_that_there_are(path):
    assert commands(path)
    assert read(path)["name"] == path.stem
    # SkyPilot copies a folder of a bucket, but mounts only whole ones.
    for mount in read(path)["file_mounts"].values():
        assert mount["mode"] == "COPY" or mount["source"] == "${BUCKET}"


@named(TASKS)
def test_it_is_launched_as_its_head_says(path):
    text, task = path.read_text(encoding="utf-8"), read(path)
    (launch,) = re.findall(r"^#   (sky .*)$", text, re.MULTILINE)
    assert f"launch cloud/{path.name} --env BUCKET=" in launch
    for name in re.findall(r"--env (\w+)=", launch):
        assert name in task["envs"]
    # Only managed jobs are started again.
    recovery = task["resources"].get("job_recovery")
    assert recovery is None or launch.startswith("sky jobs launch")
    assert recovery is None or cli.STOPPED in recovery["recover_on_exit_codes"]


@named(TRAINED)
def test_a_task_trains_and_can_be_started_again(path):
    task = read(path)
    command, recipe = trained_by(path)
    assert command.resume
    assert recipe.checkpoint_minutes
    assert command.out == Path("/bucket/runs") / path.stem
    assert command.data == "shards"
    # A batch has as many pairs from every lane, and a process reads whole lanes.
    assert recipe.batch_size % recipe.num_streams == recipe.num_streams % gpus_of(task) == 0
    # In a window of two rows hardly anything is shuffled.
    assert recipe.shuffle_buffer >= 4 * recipe.batch_size // recipe.num_streams
    assert not recipe.lock_image or not recipe.cache_image_features
    spot = task["resources"]["use_spot"]
    assert spot == ("spot" in path.stem)
    assert not spot or "job_recovery" in task["resources"]


@named(TRAINED)
def test_the_plan_in_its_head_is_of_the_same_run_and_fits(path):
    (head,) = re.findall(
        r"^#   longclip-lab (plan .*)$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    planned, task = cli._parse(shlex.split(head)), read(path)
    assert isinstance(planned, PlanRun)
    command, recipe = trained_by(path)
    assert planned.gpus == f"A100:{gpus_of(task)}"
    assert (planned.method, planned.dataset_size) == (command.method, command.dataset_size)
    assert planned.micro_batch == recipe.micro_batch
    assert planned.cache_image_features == recipe.cache_image_features
    assert planned.sharding == recipe.sharding
    assert planned.spot == task["resources"]["use_spot"]
    if command.method == "longclip":
        assert planned.model == command.model
    assert planned.plan().memory() < FILLED * GPUS["A100"].memory


def test_benchmarks_are_known_by_name():
    (command,) = commands(CLOUD / "evaluate.yaml")
    assert isinstance(command, Eval)
    for name in command.benchmark:
        assert get_protocol(name).name == name


def run(command, **variables):
    """A command of cloud/ with this interpreter's programs first in the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    return done.returncode, done.stdout, done.stderr


def test_the_script_passes_on_what_the_command_says(tmp_path):
    code, _, said = run([CLOUD / "launch.sh", "--cpu", "train", "longclop", "--out", tmp_path])
    assert code == cli.BAD_INPUT
    assert "longclip" in said


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Runs one stage of `cloud/dry-run.sh`, which does them all when none is named; one folder."""
    folder = tmp_path_factory.mktemp("dry-run")

    def run_stage(name):
        code, out, said = run([CLOUD / "dry-run.sh", folder, "8", name])
        assert code == 0, said
        return folder, out

    return run_stage


class TestDryRun:
    def test_the_run_is_stopped(self, stage):
        stage("shards")
        _, out = stage("stop")
        assert "stopped: exit code 75" in out

    def test_two_machines_go_on(self, stage):
        folder, _ = stage("go-on")
        rows = (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, 9))
        assert (folder / "run" / "model").is_dir()

    def test_the_model_is_evaluated(self, stage):
        folder, _ = stage("evaluate")
        (record,) = (folder / "scores").glob("*.json")
        scores = json.loads(record.read_text(encoding="utf-8"))["scores"]
        # A few steps on 64 pairs do no harm: chance is 0.1%.
        assert scores["i2t R@1"]["value"] > 0.3


def test_a_stage_that_there_is_not_is_named(tmp_path):
    code, _, said = run([CLOUD / "dry-run.sh", tmp_path, "8", "shard"])
    assert code != 0
    assert "There is no stage 'shard'; expected shards, stop, go-on or evaluate." in said
