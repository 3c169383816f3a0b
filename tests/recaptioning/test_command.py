"""`longclip-lab recaption`, from a folder of pictures to a page of numbers."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from longclip_lab import world
from longclip_lab.cli import main

QUICK = ("--max-new-tokens", "16", "--no-progress")
TWO = ("--data", "world", "--pairs", "2")


def run(*arguments) -> int:
    return main(["recaption", *map(str, arguments), *QUICK])


def test_a_folder_of_pictures(folders, tmp_path, capsys):
    root = tmp_path / "pictures"
    root.mkdir()
    for i, image in enumerate(world.pairs(5).images):
        Image.fromarray(image).save(root / f"{i}.jpg")
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    captions, table = tmp_path / "captions", tmp_path / "captions.json"
    arguments = (folders["llava"], captions, "--root", root, "--captioner", "sharegpt4v")
    assert run(*arguments, "--sharegpt4v", table) == 0
    out = capsys.readouterr().out
    assert "1 files written, 0 were there" in out
    assert "ShareGPT4V (llava, float32) on folder: 5 captions of 6 pictures" in out
    assert "left out, broken picture: 1 (bad.jpg (" in out
    assert "tokens a text by BERT's tokenizer" in out
    assert "cut at 16 tokens" in out
    assert len(json.loads(table.read_text())) == 5
    assert run(*arguments) == 0
    assert "0 files written, 1 were there" in capsys.readouterr().out
    assert run(*arguments, "--prompt", "What is it?") == 2
    err = capsys.readouterr().err
    assert "asking.prompt was 'Describe the image in detail.', now 'What is it?'" in err


def test_the_world_is_checked(folders, tmp_path, capsys):
    arguments = (folders["instructblip"], tmp_path, "--data", "world", "--pairs", "12", "--check")
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "named kinds that are not there" in out
    assert "words the world does not know" in out
    assert run(*arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["captions"] == 12
    assert record["check"] == json.loads((tmp_path / "hallucinated.json").read_text())
    assert record["check"]["words"]["n"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{dst}"], "Say where the pictures are with --root"),
        (["{model}", "{dst}", "--root", "nowhere"], "There is no folder nowhere"),
        (["{model}", "{dst}", "--root", ".", "--check"], "give --data world"),
        (["nowhere", "{dst}", *TWO], "cannot be loaded"),
        (["{model}", "{dst}", *TWO, "--batch-size", "0"], "--batch-size must be"),
        (["{model}", "{dst}", *TWO, "--sharegpt4v", "a.json"], "names picture files"),
        (["{model}", "{dst}", *TWO, "--top-p", "2"], "--top-p must be"),
    ],
)
def test_bad_input_gets_one_line(folders, tmp_path, arguments, message, capsys):
    names = {"model": folders["llava"], "dst": tmp_path}
    assert run(*(one.format(**names) for one in arguments)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
