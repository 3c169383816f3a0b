"""The command line: quick help, one clear line for bad input, the whole path on real files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import resource
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image

from longclip_lab import __version__, cli, models, world
from longclip_lab.cli import main
from longclip_lab.commands_data import CheckShards, List, Stats, Verify, WriteShards
from longclip_lab.errors import LabError, Numbers
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.recipes import recipe_for

HEAVY = {"torch", "open_clip", "transformers", "plotly", "pandas", "PIL", "numpy"}
QUICK = ["--batch-size", "8", "--steps", "2", "--warmup-steps", "1", "--k", "4", "--no-progress"]


def command(*arguments, **options):
    whole = [sys.executable, "-m", "longclip_lab.cli", *map(str, arguments)]
    return subprocess.run(whole, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return models.save(models.new_tiny(seed=1), tmp_path_factory.mktemp("models") / "fresh")


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """Twelve pictures of the world as photographs, three captions each; one picture without."""
    root = tmp_path_factory.mktemp("coco")
    pairs = world.pairs(13, seed=5)
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for i, image in enumerate(pairs.images):
            Image.fromarray(image).save(root / split / f"{i:012d}.jpg")
        content = {
            "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(12)],
            "annotations": [
                {
                    "id": 12 * j + i,
                    "image_id": i,
                    "caption": f"Photo of {pairs.short[(i + j) % 12]}",
                }
                for j in range(3)
                for i in range(12)
            ],
        }
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    return root


def test_help_answers_in_under_a_second():
    # Processor time: the wall clock would also measure what else the machine is doing.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    for name in ("quickstart", "tokens", "probe", "train", "eval", "version"):
        assert name in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_help_loads_nothing_heavy():
    code = (
        "import sys, longclip_lab.cli as cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--learning-rate" in done.stdout


@pytest.mark.parametrize(("scale", "batch"), [("tiny", "128"), ("lab", "512"), ("paper", "2048")])
def test_help_shows_the_defaults_of_the_scale(scale, batch, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--scale", scale, "--help"])
    assert f"(default: {batch})" in capsys.readouterr().out


def test_help_shows_the_defaults_of_the_method(capsys):
    with pytest.raises(SystemExit):
        main(["train", "lotlip", "--scale", "paper", "--dataset-size", "100M", "--help"])
    assert "(default: 16384)" in capsys.readouterr().out


def test_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_tokens_prints_sentences_or_one_json_object(tmp_path, capsys):
    path = tmp_path / "captions.txt"
    path.write_text("A red boat. It is upright.\nA tree.\n", encoding="utf-8")
    assert main(["tokens", str(path), "--tokenizer", "world"]) == 0
    assert "2 texts" in capsys.readouterr().out
    assert main(["tokens", str(path), "--tokenizer", "world", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["texts"], found["tokens_per_text"]) == (2, 5.5)


def test_train_on_coco_writes_a_model_and_says_what_it_did(
    model_folder, coco_folder, tmp_path, capsys
):
    arguments = ["train", "longclip", "--model", str(model_folder), "--data", "coco"]
    arguments += ["--root", str(coco_folder), "--out", str(tmp_path / "run"), *QUICK]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "coco/train2017: 12 pictures with 36 captions" in said
    assert "no caption (not in the caption file): 1\n  000000000012.jpg" in said
    assert "peak memory" in said
    assert models.load(tmp_path / "run" / "model").context_length == 248
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"]["steps"] == 2
    assert record["skipped"] == {"no caption (not in the caption file)": ["000000000012.jpg"]}
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0


def test_train_lotlip_says_what_it_drew(tmp_path, capsys):
    arguments = ["train", "lotlip", "--pairs", "8", *QUICK, "--out", str(tmp_path / "run")]
    arguments += ["--features", str(tmp_path / "features"), "--subcaptions", "99"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "first epoch: 99 sub-captions each (" in said
    assert "8 of 8 captions have fewer, all of which were read" in said
    clip = models.load(tmp_path / "run" / "model")
    assert models.corners_of(clip).num_corner == 2
    assert (tmp_path / "features" / "features.npy").exists()
    again = ["train", "register", "--model", str(tmp_path / "run" / "model"), "--pairs", "8"]
    assert main([*again, "--features", str(tmp_path / "features"), *QUICK]) == 0


def test_a_given_model_gets_the_corners_of_the_recipe(model_folder, tmp_path, capsys):
    arguments = ["train", "lotlip", "--model", str(model_folder), "--pairs", "8", *QUICK]
    assert main([*arguments, "--num-corner", "3", "--out", str(tmp_path / "run")]) == 0
    assert models.corners_of(models.load(tmp_path / "run" / "model")).num_corner == 3


def test_epochs_stand_in_for_the_steps_of_the_scale(model_folder, tmp_path, capsys):
    arguments = ["train", "longclip", "--model", str(model_folder), "--pairs", "8", "--epochs", "1"]
    arguments += ["--batch-size", "4", "--objective", "long", "--no-progress"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["recipe"]["steps"], record["recipe"]["epochs"]) == (None, 1)
    assert record["total_steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train longclip --model ViT-B-61", "Did you mean ViT-B-16"),
        ("train longclip --data coco", "--root"),
        ("train longclip --scale huge", "no scale 'huge'"),
        ("train shortclip", "no method 'shortclip'"),
        ("train lotlpi --steps 3", "Did you mean lotlip"),
        ("train --steps 3 lotlip", "Name the method first"),
        ("train lotlip --dataset-size 4M", "no data scale '4M'"),
        ("train lotlip --num-corner -1", "num_corner must be a whole number from 0"),
        ("train lotlip --text-tower minilm --token-limit 999", "does not fit the 512 positions"),
        ("train lotlip --data dreamlip", "--root DIR"),
        ("train lotlip --pairs 8 --batch-size 8 --captioners nobody", "got 'nobody'"),
        ("train lit --pairs 8 --batch-size 8 --features {model}", "holds no stored features"),
        ("train longclip --learning-rate -1", "learning_rate must be a finite number, above 0"),
        ("train longclip --steps 5 --epochs 5", "either steps or epochs"),
        ("train longclip --model {model} --keep 77", "keep must be"),
        ("train longclip --model {model} --ratio 0.5", "ratio must be at least 1"),
        ("train longclip --model {model} --out {model} --pairs 8 --batch-size 8", "holds no run"),
        ("train longclip --model {model} --pairs 8 --batch-size 10", "larger than the data"),
        ("probe {model} --data coco --root nowhere", "no folder nowhere"),
        ("probe {model} --data coco --root {root} --split val2014", "Did you mean val2017"),
        ("eval --data coco", "at least one model"),
        ("eval {model} --benchmark world/kinds", "world/kind"),
        ("eval nothing.pt", "nothing.pt"),
        ("tokens nowhere.txt", "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, model_folder, coco_folder, capsys):
    filled = arguments.format(model=model_folder, root=coco_folder).split()
    assert main(filled) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train", "longclip", "--steps", "many"], ["train"], []]
)
def test_a_misspelt_command_is_code_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_an_error_has_no_traceback(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    done = command("tokens", tmp_path / "latin.txt")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "UTF-8" in done.stderr


def test_a_place_that_cannot_be_written_is_named(model_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    arguments = ["train", "longclip", "--model", str(model_folder), "--pairs", "8", *QUICK]
    assert main([*arguments, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "file" in capsys.readouterr().err


def test_an_interrupt_is_code_130(monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("longclip_lab.commands.Version.run", interrupt)
    assert main(["version"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_an_interrupt_during_the_imports_is_one_line():
    code = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "tyro":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from longclip_lab.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize("data", ["world", "coco"])
def test_probe_writes_its_numbers(data, model_folder, coco_folder, tmp_path, capsys):
    arguments = ["probe", str(model_folder), "--no-progress", "--out", str(tmp_path / "probe.json")]
    where = ["--pairs", "12"] if data == "world" else ["--data", "coco", "--root", str(coco_folder)]
    assert main([*arguments, *where]) == 0
    assert "peak memory" in capsys.readouterr().out
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["truncation_curve"]["pairs"] == 12
    assert ("counterfactual_probe" in found) == (data == "world")


def test_eval_records_counts_and_what_was_skipped(model_folder, coco_folder, tmp_path, capsys):
    arguments = ["eval", str(model_folder), "--data", "coco", "--root", str(coco_folder)]
    assert main([*arguments, "--no-progress", "--out", str(tmp_path / "eval.json")]) == 0
    assert "peak memory" in capsys.readouterr().out
    found = json.loads((tmp_path / "eval.json").read_text())
    [data] = found["data"]
    assert data["skipped"] == {"no caption (not in the caption file)": ["000000000012.jpg"]}
    long, short = found["records"]
    assert (long["counts"]["images"], long["counts"]["texts"]) == (12, 12)
    assert (short["counts"]["images"], short["counts"]["texts"]) == (12, 36)
    assert short["skipped"] == {"no caption (not in the caption file)": 1}


def numeric_options(command) -> dict[str, list[Numbers]]:
    """Options whose value is a number, and the ranges they are checked against; a recipe checks
    its own (the test below)."""
    hints = get_type_hints(command, include_extras=True)
    found = {}
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        inner = [part for part in get_args(hint) if isinstance(part, type)]
        if parts := [part for part in inner if dataclasses.is_dataclass(part)]:
            for part in parts:
                found |= {} if issubclass(part, Recipe) else numeric_options(part)
        elif dataclasses.is_dataclass(hint):
            found |= numeric_options(hint)
        elif re.search(r"\b(int|float)\b", str(hint)):
            found[f"{command.__name__}.{field.name}"] = cli._numbers_in(hint)
    return found


COMMANDS = [
    cli.Quickstart, cli.Tokens, cli.Probe, cli.Train, cli.Eval, cli.Table, cli.Convert,
    cli.Inspect, cli.Faithfulness, cli.Reproduce, cli.Search, cli.PlanRun, cli.Recaption,
    List, Verify, Stats, WriteShards, CheckShards,
]  # fmt: skip


def test_every_number_on_the_command_line_has_a_range():
    found = {name: ranges for one in COMMANDS for name, ranges in numeric_options(one).items()}
    assert len(found) > 25
    assert [name for name, ranges in found.items() if len(ranges) != 1] == []


def test_every_number_of_a_recipe_has_a_range():
    """By trying: NaN is no value of any of them."""
    hints = get_type_hints(Recipe)
    numbers = [n for n, hint in hints.items() if re.search(r"\b(int|float)\b", str(hint))]
    assert len(numbers) > 35
    for name in numbers:
        with pytest.raises(LabError, match=name):
            dataclasses.replace(recipe_for("longclip"), **{name: math.nan})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan longclip --pairs 0", "--pairs must be a whole number from 1 to 10^12; came 0"),
        ("plan longclip --pairs -5", "--pairs"),
        ("plan longclip --dollars nan --json", "--dollars must be a finite number, at least 0"),
        (
            "plan longclip --data-throughput inf",
            "--data-throughput must be a finite number, above 0",
        ),
        ("plan longclip --batch-size 1 --gpus A100", "batch_size must be a whole number from 2"),
        ("train longclip --batch-size 1", "batch_size must be a whole number from 2"),
        ("train longclip --processes 0", "--processes must be a whole number from 1 to 1,024"),
        ("train longclip --memory nan --dry-run", "--memory"),
        ("train longclip --ratio nan", "--ratio"),
        ("search . boat --top -1", "--top"),
        ("eval tiny --length 77 0", "--length"),
        ("quickstart --seed -1", "--seed must be a whole number from 0 to 4,294,967,295"),
        ("faithfulness --n 0", "--n must be"),
        ("reproduce lotlip/table3 --seeds 0", "--seeds must be"),
        ("probe tiny --out /", "/ is a folder; name a file"),
        ("probe tiny --out /dev/null/a.json", "/dev/null/a.json cannot be written"),
        ("recaption model out --temperature nan", "--temperature"),
        ("recaption model out --top-p 1.5", "--top-p must be a finite number from 0 to 1"),
        ("data shard out --data world --per-shard 0", "--per-shard"),
        ("data shard out --data world --workers -1", "--workers"),
    ],
)
def test_senseless_numbers_are_refused_before_anything_else(arguments, message, capsys):
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_output_encoding_will_do(encoding, tmp_path):
    """What a pipe on Windows takes, and file names that are no text in any encoding."""
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(["“Größe” ≥ 5 · 赤い船", "a boat"]), encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    listed = command("--help", env=environment, encoding=encoding)
    assert (listed.returncode, listed.stderr) == (0, "")
    counted = command("tokens", texts, "--json", env=environment)
    assert json.loads(counted.stdout)["texts"] == 2
    missing = command("tokens", tmp_path / os.fsdecode(b"caf\xe9.txt"), env=environment)
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
    assert "caf\\udce9.txt" in missing.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", ["version", "--help", "plan lotlip --json"])
def test_a_full_disk_behind_the_output_is_code_2(arguments):
    with open("/dev/full", "w") as full:
        whole = [sys.executable, "-m", "longclip_lab.cli", *arguments.split()]
        done = subprocess.run(whole, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "out.json"), "out.json: Permission denied"),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "not enough memory"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), "udce9"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, message, monkeypatch, capsys):
    def fail(self):
        raise error

    monkeypatch.setattr("longclip_lab.commands.Version.run", fail)
    assert main(["version"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert message in told


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    def fail(self):
        raise RuntimeError("a fault")

    monkeypatch.setattr("longclip_lab.commands.Version.run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["version"])


def test_a_name_too_long_for_a_file_is_told_in_one_line(capsys):
    name = "red " * 3000
    assert main(["inspect", f"./{name}"]) == 2
    said = capsys.readouterr().err
    assert len(said) < 600
    assert "(12,000 characters): File name too long" in said
