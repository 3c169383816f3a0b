"""A picture from a prompt, in Python and on the command line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from longclip_lab import generation
from longclip_lab.cli import main
from longclip_lab.errors import LabError
from tests.generation.pipelines import PROMPT


def test_a_seed_is_a_picture(sd):
    first, again = (generation.draw(sd, "a boat", steps=2) for _ in range(2))
    assert first.image.size == (8, 8)
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, generation.draw(sd, "a boat", steps=2, seed=1).image)
    with pytest.raises(LabError, match="steps must be"):
        generation.draw(sd, "a boat", steps=0)


@pytest.fixture(scope="module")
def folder(xl, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    xl.save_pretrained(path)
    return path


def run(prompt, folder, *options):
    places = ["--pipeline", str(folder), "--steps", "1", "--no-progress"]
    return main(["generate", prompt, *places, *map(str, options)])


def test_the_command_says_what_is_read(folder, tmp_path, capsys):
    out = tmp_path / "made" / "a.png"
    assert run(PROMPT, folder, "--out", out) == 0
    said, complained = capsys.readouterr()
    assert "truncate: 75 of" in said
    assert "not read: " in said
    assert "The rest changes nothing in the picture" in complained
    assert Image.open(out).size == (8, 8)
    assert run(PROMPT, folder, "--out", out, "--strategy", "chunk", "--cut", "sentence") == 0
    assert "pieces" in capsys.readouterr().out
    assert run("a boat", folder, "--out", out, "--strategy", "kps") == 0
    assert "kps: 2 of 2 tokens read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "tuned"], "Expected clip_l"),
        (["--long-clip", "nowhere.pt"], "nowhere.pt"),
        (["--long-clip", "tiny"], "cannot replace the pipeline's text_encoder: hidden_size"),
        (["--pipeline", "nowhere/at/all"], "cannot be opened as a pipeline"),
    ],
)
def test_bad_input_is_said_in_a_line(folder, tmp_path, capsys, options, message):
    out = tmp_path / "a.png"
    assert run("a boat", folder, "--out", out, *options) == 2
    complained = capsys.readouterr().err
    assert message in complained
    assert "Traceback" not in complained
    assert not out.exists()
