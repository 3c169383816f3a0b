"""What is saved comes back to the last bit, and a damaged folder is told as such."""

from __future__ import annotations

import json

import pytest
import torch

from longclip_lab.errors import LabError
from longclip_lab.models import load, save, stretch
from longclip_lab.models.build import build_preprocess


def test_round_trip_is_exact(tiny, tmp_path):
    long = stretch(tiny)
    back = load(save(long, tmp_path / "model"))
    assert (back.name, back.card, back.tokenizer.name) == (long.name, long.card, "world")
    assert back.context_length == 248
    assert not back.model.training
    expected = long.model.state_dict()
    assert back.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(back.model.state_dict()[name], expected[name]) for name in expected)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "clip.json",
        "model.safetensors",
    ]


def test_half_precision_is_smaller_and_comes_back_as_float32(tiny, tmp_path):
    whole, half = save(tiny, tmp_path / "whole"), save(tiny, tmp_path / "half", dtype=torch.float16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    back = load(half)
    assert {weight.dtype for weight in back.model.parameters()} == {torch.float32}
    rounded = tiny.model.token_embedding.weight.half().float()
    assert torch.equal(back.model.token_embedding.weight, rounded)


def test_weights_too_large_for_half_precision(tiny, tmp_path):
    huge = stretch(tiny)
    with torch.no_grad():
        huge.model.ln_final.weight[0] = 1e6
    with pytest.raises(LabError, match=r"ln_final\.weight.*too large"):
        save(huge, tmp_path / "model", dtype=torch.float16)
    assert not (tmp_path / "model").exists()


def test_a_file_cut_short(tiny, tmp_path):
    folder = save(tiny, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(LabError, match="cut short or replaced"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"format": "other"}', "not in the format"),
        ("[]", "not in the format"),
    ],
)
def test_a_config_of_another_form(tmp_path, content, message):
    (tmp_path / "clip.json").write_text(content)
    with pytest.raises(LabError, match=message):
        load(tmp_path)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(LabError, match=r"no clip\.json"):
        load(tmp_path)


def test_a_folder_without_its_weights(tiny, tmp_path):
    folder = save(tiny, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LabError, match="copied only in part"):
        load(folder)


def test_a_config_that_does_not_fit_the_weights(tiny, tmp_path):
    folder = save(tiny, tmp_path / "model")
    config = json.loads((folder / "clip.json").read_text())
    config["card"]["model_cfg"]["text_cfg"]["layers"] = 2
    (folder / "clip.json").write_text(json.dumps(config))
    with pytest.raises(LabError, match="does not fit the model"):
        load(folder)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("text_cfg", "width", 128_000, "parameters, more than its file of weights"),
        ("text_cfg", "heads", 4.0, "its text_cfg: 'heads' should be"),
        ("text_cfg", "layers", "2", "its text_cfg: 'layers' should be"),
        ("vision_cfg", "head_width", True, "its vision_cfg: 'head_width' should be"),
        ("vision_cfg", "image_size", -72, "its vision_cfg: 'image_size' should be"),
        ("vision_cfg", "layers", 10**30, "its vision_cfg: 'layers' should be"),
        ("vision_cfg", "image_size", [72, 0], "its vision_cfg: 'image_size' should be"),
    ],
)
def test_a_config_of_senseless_sizes_takes_no_memory(part, name, value, message, tiny, tmp_path):
    folder = save(tiny, tmp_path / "model")
    config = json.loads((folder / "clip.json").read_text())
    config["card"]["model_cfg"][part][name] = value
    (folder / "clip.json").write_text(json.dumps(config))
    with pytest.raises(LabError, match=rf"clip\.json.*{message}"):
        load(folder)


@pytest.mark.parametrize("size", ["kps", 0, [72], [72, -1], None, True])
def test_a_card_says_how_large_pictures_are(size):
    card = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "size": size}
    with pytest.raises(LabError, match="expected 1 or more"):
        build_preprocess(card)


def test_pictures_of_another_size_than_the_tower_takes_are_refused(tiny, tmp_path):
    folder = save(tiny, tmp_path / "model")
    config = json.loads((folder / "clip.json").read_text())
    config["card"]["preprocess"]["size"] = 64
    (folder / "clip.json").write_text(json.dumps(config))
    with pytest.raises(LabError, match=r"clip\.json.*makes pictures of \[64, 64\] pixels"):
        load(folder)
