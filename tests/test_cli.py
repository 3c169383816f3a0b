"""The command line: quick help, one clear line for bad input, the whole path on real files."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
from PIL import Image

from longclip_lab import __version__, models, world
from longclip_lab.cli import main

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
        main(["train", "lotlip", "--scale", "paper", "--data-scale", "100M", "--help"])
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
        ("train lotlip --data-scale 4M", "no data scale '4M'"),
        ("train lotlip --num-corner -1", "num_corner must be a whole number of at least 0"),
        ("train lotlip --text-tower minilm --token-limit 999", "does not fit the 512 positions"),
        ("train lotlip --data dreamlip", "--root DIR"),
        ("train lotlip --pairs 8 --batch-size 8 --captioners nobody", "got 'nobody'"),
        ("train lit --pairs 8 --batch-size 8 --features {model}", "holds no stored features"),
        ("train longclip --learning-rate -1", "learning_rate must be a positive number"),
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
