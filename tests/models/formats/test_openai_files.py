"""OpenAI's files: an archive's tensors without its code, plain tensors; and Long-CLIP's."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import load

WEIGHTS_ONLY = {"input_resolution": 32, "context_length": 77, "vocab_size": 512}


@pytest.fixture(scope="module", params=["ViT", "ResNet"])
def archive(request, made, tmp_path_factory):
    """A traced model in half precision, as OpenAI released them, with its three numbers."""
    clip = made(request.param)
    model = open_clip.model.build_model_from_openai_state_dict(
        dict(clip.model.state_dict()), cast_dtype=torch.float32
    ).float()
    size = clip.image_size
    for name, value in WEIGHTS_ONLY.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    pixels, texts = torch.ones(1, 3, size, size), torch.zeros(1, 77, dtype=torch.int)
    path = tmp_path_factory.mktemp("openai") / f"{request.param}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ways = {"encode_text": (texts,), "encode_image": (pixels,)}
        traced = torch.jit.trace_module(model.eval(), ways, check_trace=False)
        traced.half().save(path)
    return path


def test_an_archive_reads_as_torchscript_runs_it(archive, inputs, apart, compatibility):
    clip = load(archive)
    pixels, texts = inputs(clip)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(archive).float()
        images, words = theirs.encode_image(pixels), theirs.encode_text(texts.int())
        difference = max(
            apart(clip.encode_image(pixels), images), apart(clip.encode_text(texts), words)
        )
    assert difference < 1e-5
    assert clip.card["positions"]["method"] == "none"
    against = f"TorchScript {torch.__version__}"
    on = f"tiny {archive.stem}, archive, float16"
    compatibility("openai", "in", on, against, difference)


def test_nothing_of_an_archive_is_run(archive, tmp_path):
    """Its programs may be anything: they are not even read."""
    path = tmp_path / "changed.pt"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            inside = entry.partition("/")[2]
            new.writestr(entry, b"import os" if inside.startswith("code/") else old.read(entry))
    expected = load(archive).model.state_dict()
    found = load(path).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class Payload:
    """Something that runs code when it is unpickled without care."""

    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_an_archive_with_other_objects_is_refused(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile("bad.pt", "w") as new:
        for entry in old.namelist():
            bad = entry.endswith("/data.pkl")
            new.writestr(entry, pickle.dumps(Payload()) if bad else old.read(entry))
    with pytest.raises(LabError, match="refused"):
        load("bad.pt")
    assert not (tmp_path / "owned").exists()


def test_half_an_archive(archive, tmp_path):
    content = archive.read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(LabError, match=r"not a whole checkpoint|refused"):
        load(tmp_path / "half.pt")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "few.pt", "w") as new:
        for entry in old.namelist():
            if not entry.endswith("/data/7"):
                new.writestr(entry, old.read(entry))
    with pytest.raises(LabError, match="not a whole checkpoint"):
        load(tmp_path / "few.pt")


@pytest.mark.parametrize("tower", ["ViT", "B/32", "336px", "ResNet"])
def test_plain_tensors(tower, made, inputs, apart, tmp_path, compatibility):
    """With OpenAI's three numbers there is no doubt; without them there is, and it is said."""
    clip = made(tower)
    weights = {name: tensor.half() for name, tensor in clip.model.state_dict().items()}
    facts = {name: torch.tensor(value) for name, value in WEIGHTS_ONLY.items()}
    torch.save({**weights, **facts}, tmp_path / "plain.pt")
    torch.save(weights, tmp_path / "bare.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LabWarning)
        found = load(tmp_path / "plain.pt")
    with pytest.warns(LabWarning, match="taken for OpenAI's kind.*name its architecture"):
        bare = load(tmp_path / "bare.pt")
    assert found.card["model_cfg"] == bare.card["model_cfg"]
    theirs = open_clip.model.build_model_from_openai_state_dict(
        weights, cast_dtype=torch.float32
    ).float()
    pixels, texts = inputs(clip)
    with torch.no_grad():
        difference = max(
            apart(found.encode_image(pixels), theirs.encode_image(pixels)),
            apart(found.encode_text(texts), theirs.encode_text(texts)),
        )
    assert difference < 1e-5
    against = f"open_clip {open_clip.__version__}'s copy of OpenAI's code"
    compatibility("openai", "in", f"tiny {tower}, tensors, float16", against, difference)


def test_the_archive_as_weights_of_a_name(archive):
    assert load("ViT-B-16", pretrained=archive).image_size in (32, 64)


@pytest.mark.parametrize("tower", ["ViT", "B/32", "336px", "ResNet"])
def test_longclip_of_any_shape(tower, made, inputs, apart, tmp_path, compatibility):
    """Positions 0 to 19 from the first table, the rest from the second."""
    clip = made(tower, length=248)
    weights = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    positions = weights["positional_embedding"]
    weights["positional_embedding_res"] = positions.clone()
    weights["positional_embedding_res"][:20] = 5.0
    positions[20:] = 7.0
    torch.save(weights, tmp_path / "longclip.pt")
    found = load(tmp_path / "longclip.pt")
    pixels, texts = inputs(clip)
    with torch.no_grad():
        difference = max(
            apart(found.encode_image(pixels), clip.encode_image(pixels)),
            apart(found.encode_text(texts), clip.model.encode_text(texts)),
        )
    assert difference < 1e-5
    assert found.card["positions"] == {"method": "kps", "keep": 20, "ratio": 4, "length": 248}
    compatibility("longclip", "in", f"tiny {tower}, 248 positions", "open_clip", difference)


def test_longclip_as_the_official_code_runs_it(golden, apart, compatibility):
    clip = load(golden / "longclip-tiny.pt")
    expected = load_file(golden / "longclip-tiny-features.safetensors")
    with torch.no_grad():
        image = apart(clip.encode_image(expected["image"]), expected["image_features"])
        texts = expected["tokens_long"].long()
        text = apart(clip.encode_text(texts), expected["text_features_long"])
    assert max(image, text) < 1e-5
    on = "a tiny ViT written by the official code"
    against = "numbers of the official code"
    compatibility("longclip", "in", on, against, max(image, text))
