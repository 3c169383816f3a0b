"""`load` and `save`: every way in which a model can be named, and our own folder."""

from __future__ import annotations

import json
import time
import warnings

import huggingface_hub
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import bundled_names, encode_images, load, save, stretch
from longclip_lab.models import tiny as bundled_module
from longclip_lab.models.build import build_lotlip, build_preprocess

# --- Names ---

SMALL = "lab-test-small"
OTHER = "lab-test-other"


@pytest.fixture(scope="module", autouse=True)
def small_architectures(tmp_path_factory):
    """Two small architectures among open_clip's names."""
    folder = tmp_path_factory.mktemp("open-clip-configs")
    for name, width in ((SMALL, 64), (OTHER, 128)):
        model_cfg = {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"width": width, "heads": 2, "layers": 1},
        }
        (folder / f"{name}.json").write_text(json.dumps(model_cfg))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def random_clip():
    with pytest.warns(LabWarning, match="random weights"):
        return load(SMALL)


def test_an_open_clip_name(random_clip):
    assert isinstance(random_clip.model, open_clip.CLIP)
    assert (random_clip.context_length, random_clip.image_size) == (77, 32)
    assert random_clip.tokenizer.name == "clip"
    assert random_clip.name == f"{SMALL}/random"
    assert not random_clip.model.training


def test_a_file_of_weights(random_clip, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(random_clip.model.state_dict(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LabWarning)
        clip = load(SMALL, pretrained=path)
    expected = random_clip.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in clip.model.state_dict().items())
    assert clip.name == f"{SMALL}/weights"
    with pytest.raises(LabError, match=f"not those of a {OTHER}"):
        load(OTHER, pretrained=path)


def test_a_file_with_more_positions_keeps_them(random_clip, tmp_path):
    """open_clip would squeeze them into the 77 of its config."""
    state_dict = dict(random_clip.model.state_dict())
    state_dict["positional_embedding"] = torch.randn(248, 64)
    torch.save(state_dict, tmp_path / "long.pt")
    clip = load(SMALL, pretrained=tmp_path / "long.pt")
    assert clip.context_length == 248
    assert torch.equal(clip.model.positional_embedding, state_dict["positional_embedding"])


def test_pictures_of_any_shape(random_clip):
    picture = Image.new("L", (50, 40))
    assert encode_images(random_clip, [picture]).shape == (1, 32)


def test_a_folder_in_open_clips_layout(random_clip, tmp_path):
    config = {"model_cfg": random_clip.card["model_cfg"], "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(LabError, match="no weights in"):
        load(tmp_path)
    save_file(random_clip.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    clip = load(tmp_path)
    expected = random_clip.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in clip.model.state_dict().items())
    assert clip.image_mean == (0.5, 0.5, 0.5)


def test_a_longclip_file_as_weights_of_a_name(golden):
    with pytest.warns(LabWarning, match=r"not of the size of ViT-B-16.*image_size 32, not 224"):
        clip = load("ViT-B-16", pretrained=golden / "longclip-tiny.pt")
    assert clip.context_length == 248


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-61", None, "Did you mean ViT-B-16"),
        ("qqqqqqqq", None, "Bundled models: .*open_clip.list_models"),
        ("no/such/file", None, "No model is called"),
        ("missing.pt", None, "no model file or folder"),
        ("./missing", None, "no model file or folder"),
        ("ViT-B-32", "opnai", "Did you mean openai"),
        (SMALL, "openai", "It has no tags"),
        ("tiny", "openai", "goes with an open_clip name.*Bundled models"),
    ],
)
def test_names_that_find_nothing(name, pretrained, message):
    with pytest.raises(LabError, match=message):
        load(name, pretrained=pretrained)


def test_bundled_models_are_found_in_a_clone_and_in_a_wheel(tiny, tmp_path, monkeypatch):
    package = tmp_path / "longclip_lab"
    package.mkdir()
    monkeypatch.setattr(bundled_module.longclip_lab, "__file__", str(package / "__init__.py"))
    assert bundled_names() == []
    with pytest.raises(LabError, match="bundled models are missing"):
        bundled_module.data_folder()
    save(tiny, tmp_path / "data" / "tiny")
    assert load("tiny").name == tiny.name
    save(tiny, package / "_bundled" / "wheel-tiny")
    assert bundled_names() == ["wheel-tiny"]
    with pytest.raises(LabError, match="Did you mean wheel-tiny"):
        load("wheel-tinny")
    with pytest.raises(LabError, match="Did you mean wheel-tiny"):
        bundled_module.bundled_folder("whel-tiny")


def test_hub_models_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LabError, match="No open_clip model 'nobody/nothing'"):
        load("nobody/nothing")


@pytest.mark.parametrize("name", ["someone/some-clip", "hf-hub:someone/some-clip"])
def test_an_unreachable_hub_is_told_at_once(monkeypatch, tmp_path, name):
    """huggingface_hub alone tries again for half a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(LabError, match=r"'someone/some-clip' is no file .* cannot be reached"):
        load(name)
    assert time.perf_counter() - began < 10
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


# --- Our own folder ---


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
        ("text_cfg", "context_length", 200_000, "'context_length' should be at most 16,384"),
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", 10**6, "parameters, more than its file of weights"),
        ("vocab_size", 10**10, "parameters, more than its file of weights"),
        ("num_hidden_layers", 10**6, "'num_hidden_layers' should be"),
    ],
)
def test_a_bert_of_senseless_sizes_takes_no_memory(name, value, message, tmp_path):
    folder = save(
        build_lotlip("tiny-tower", "world", 2, pretrained_image=False), tmp_path / "model"
    )
    config = json.loads((folder / "clip.json").read_text())
    config["card"]["model_cfg"]["text_cfg"]["hf_config"][name] = value
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
