"""What is in a file of weights: the golden file, wrappings, numbers that are none, damage."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from longclip_lab.cli import main
from longclip_lab.errors import LabError, LabWarning, NotFiniteError
from longclip_lab.models import export, inspect, load, load_text_tower, save, stretch
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.checkpoint import read_checkpoint
from longclip_lab.models.formats.hf import text_weights
from longclip_lab.text import get_tokenizer

# --- The golden file ---


def relative_error(ours: torch.Tensor, golden: torch.Tensor) -> float:
    return ((ours - golden).abs().max() / golden.abs().max()).item()


@pytest.fixture(scope="module")
def state_dict(golden):
    return torch.load(golden / "longclip-tiny.pt", weights_only=True)


@pytest.mark.parametrize("length", ["long", "short"])
def test_matches_the_official_code(golden, length):
    clip = load(golden / "longclip-tiny.pt")
    expected = load_file(golden / "longclip-tiny-features.safetensors")
    tokens_BT = expected[f"tokens_{length}"].long()
    with torch.no_grad():
        image_BD = clip.encode_image(expected["image"])
        text_BD = clip.encode_text(tokens_BT)
        padded_BD = clip.model.encode_text(tokens_BT)
        scale = clip.model.logit_scale.exp()
    assert relative_error(image_BD, expected["image_features"]) < 1e-5
    assert relative_error(text_BD, expected[f"text_features_{length}"]) < 1e-5
    assert relative_error(padded_BD, expected[f"text_features_{length}"]) < 1e-5
    golden_image_BD = F.normalize(expected["image_features"], dim=-1)
    golden_text_BD = F.normalize(expected[f"text_features_{length}"], dim=-1)
    golden_logits_BB = scale * golden_image_BD @ golden_text_BD.T
    logits_BB = scale * F.normalize(image_BD, dim=-1) @ F.normalize(text_BD, dim=-1).T
    assert relative_error(logits_BB, golden_logits_BB) < 1e-5


def test_what_the_file_says_about_itself(golden):
    clip = load(golden / "longclip-tiny.pt")
    assert (clip.context_length, clip.image_size, clip.embed_dim, clip.vocab_size) == (
        248,
        32,
        64,
        512,
    )
    assert clip.card["positions"] == {"method": "kps", "keep": 20, "ratio": 4, "length": 248}
    assert clip.card["model_cfg"]["quick_gelu"] is True


def test_positions_come_from_both_tables(golden, state_dict):
    positions_TW = load(golden / "longclip-tiny.pt").model.positional_embedding
    assert torch.equal(positions_TW[:20], state_dict["positional_embedding"][:20])
    assert torch.equal(positions_TW[20:], state_dict["positional_embedding_res"][20:])


def test_a_tokenizer_of_another_vocabulary(golden):
    """Tokens of its own vocabulary can be encoded; only texts cannot."""
    clip = load(golden / "longclip-tiny.pt")
    with pytest.raises(LabError, match=r"knows 512 tokens, but its tokenizer 'clip' makes 49408"):
        clip.tokenize(["a boat"])


class Payload:
    """Something that runs code when it is unpickled without care."""

    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_a_pickle_with_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"positional_embedding_res": Payload()}, "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(LabError, match="refused"):
            load(name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kept", [0, 100, 1_000_000])
def test_a_truncated_file(golden, tmp_path, kept):
    path = tmp_path / "cut.pt"
    path.write_bytes((golden / "longclip-tiny.pt").read_bytes()[:kept])
    with pytest.raises(LabError, match="not a whole checkpoint file"):
        load(path)


def test_other_architectures(state_dict, tmp_path):
    text = {
        n: t for n, t in state_dict.items() if n not in ("positional_embedding_res", "visual.proj")
    }
    torch.save(text, tmp_path / "text.pt")
    with pytest.raises(LabError, match="no 'positional_embedding_res'"):
        load(tmp_path / "text.pt")
    other = {name: t for name, t in state_dict.items() if not name.startswith("visual.conv1")}
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(LabError, match="another architecture"):
        load(tmp_path / "other.pt")
    torch.save({**state_dict, "cross.weight": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(LabError, match=r"another architecture.*cross\.weight"):
        load(tmp_path / "more.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(LabError, match="no state dict"):
        load(tmp_path / "list.pt")


# --- Every other file ---


@pytest.fixture(scope="module")
def small():
    """A tiny CLIP of OpenAI's architecture that `export` writes in every format."""
    return _clip()


def _clip(image=64, text=64, heads=1):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 16, "width": image, "layers": 1}
    words = {"context_length": 77, "vocab_size": 49408, "width": text, "heads": heads, "layers": 1}
    config = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": sizes, "text_cfg": words}
    config["vision_cfg"] |= {"head_width": image} if image < 64 else {}
    model = build_model(config)
    return assemble(model, config, get_tokenizer("clip"), preprocess_card(model), "small")


def same(clip, state_dict):
    weights = clip.model.state_dict()
    names = [name for name in weights if "positional_embedding" not in name]
    return all(torch.equal(weights[name], state_dict[name].float()) for name in names)


def prefixed(prefix, weights):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: prefixed("_orig_mod.", w),
        lambda w: prefixed("module._orig_mod.", w),
        lambda w: prefixed("_orig_mod.module.", w),
        lambda w: prefixed("_forward_module.module.model.", w),
        lambda w: {"model_state_dict": w, "optimizer_state_dict": OPTIMIZER, "epoch": 3},
        lambda w: {"model": {"state_dict": prefixed("module.", w)}, "optimizer": OPTIMIZER},
        lambda w: {"state_dict": {"model": prefixed("net.", w)}, "step": torch.tensor(3)},
        lambda w: {"state_dict": prefixed("clip_model._orig_mod.", w), "loops": {"epoch": 1}},
        lambda w: {"module": w, "optimizer": OPTIMIZER, "ds_version": "0.15"},
        lambda w: {"n_averaged": torch.tensor(5), **prefixed("module.", w)},
        lambda w: {"state_dict": {**prefixed("model.", w), "loss.temperature": torch.ones(1)}},
        lambda w: {"whatever_it_was_called": w, "optimizer": OPTIMIZER},
        lambda w: {
            name.replace("visual.", "visual._orig_mod.").replace(
                "resblocks.0.", "resblocks.0._checkpoint_wrapped_module."
            ): tensor
            for name, tensor in w.items()
        },
    ],
)
def test_what_training_frameworks_wrap(state_dict, tmp_path, wrap):
    path = tmp_path / "state.pt"
    torch.save(wrap(state_dict), path)
    assert same(load(path), state_dict)
    found = inspect(path, digest=False)
    assert (found.format, found.missing, found.unexpected) == ("Long-CLIP state dict", [], [])


def test_several_models_in_one_file(state_dict, tmp_path):
    ema = {name: tensor + 1 for name, tensor in state_dict.items()}
    torch.save({"ema": ema, "model": state_dict}, tmp_path / "ema.pt")
    with pytest.warns(LabWarning, match="'model' is taken, not 'ema'"):
        assert same(load(tmp_path / "ema.pt"), state_dict)
    torch.save({"first": state_dict, "second": ema}, tmp_path / "two.pt")
    with pytest.raises(LabError, match="several models: first, second"):
        load(tmp_path / "two.pt")
    torch.save({"generator.a": torch.zeros(2), "critic.b": torch.zeros(2)}, tmp_path / "gan.pt")
    with pytest.raises(LabError, match=r"begin with: generator \(1\), critic \(1\)"):
        load(tmp_path / "gan.pt")
    torch.save(prefixed("model.", state_dict) | prefixed("ema.", ema), tmp_path / "flat.pt")
    with pytest.raises(LabError, match=r"begin with: model \(75\), ema \(75\)"):
        load(tmp_path / "flat.pt")
    torch.save({name: t.to("meta") for name, t in state_dict.items()}, tmp_path / "meta.pt")
    with pytest.raises(LabError, match="names without values"):
        load(tmp_path / "meta.pt")
    both = state_dict | prefixed("module.", {"ln_final.bias": torch.ones(128)})
    torch.save(both, tmp_path / "both.pt")
    with pytest.raises(LabError, match=r"'ln_final.bias' and 'module.ln_final.bias' would both"):
        load(tmp_path / "both.pt")


@pytest.mark.parametrize(
    ("dtype", "good"),
    [
        *[(t, True) for t in (torch.float16, torch.bfloat16, torch.float64)],
        *[(t, False) for t in (torch.int8, torch.uint8, torch.int64, torch.bool)],
        *[(t, False) for t in (torch.float8_e4m3fn, torch.complex64)],
    ],
)
def test_weights_are_floating_point_numbers(state_dict, tmp_path, dtype, good):
    for name, tensors in {
        "all.pt": {name: tensor.to(dtype) for name, tensor in state_dict.items()},
        "one.pt": {**state_dict, "visual.proj": state_dict["visual.proj"].to(dtype)},
    }.items():
        torch.save(tensors, tmp_path / name)
        told = " ".join(inspect(tmp_path / name, digest=False).notes)
        assert ("no floating point numbers" in told) != good
        if good:
            load(tmp_path / name)
            continue
        kind = str(dtype).removeprefix("torch.")
        with pytest.raises(LabError, match=rf"no floating point numbers.*is {kind}.*float16"):
            load(tmp_path / name)


@pytest.mark.parametrize("format", ["transformers", "diffusers", "open_clip", "own"])
def test_folders_of_quantised_weights(small, tmp_path, format):
    folder = tmp_path / "folder"
    save(small, folder) if format == "own" else export(small, folder, format)
    (path,) = folder.rglob("*.safetensors")
    weights = {name: (100 * tensor).to(torch.int8) for name, tensor in load_file(path).items()}
    save_file(weights, path)
    if format == "own":
        config = json.loads((folder / "clip.json").read_text())
        config["weights_sha256"] = inspect(path).sha256
        (folder / "clip.json").write_text(json.dumps(config))
    opened = load_text_tower if format == "diffusers" else load
    with pytest.raises(LabError, match=r"no floating point numbers.*int8"):
        opened(folder)


def test_weights_that_are_not_finite(state_dict, small, tmp_path, capsys):
    bad = state_dict["visual.proj"].clone()
    bad[0, :2] = torch.tensor([float("nan"), float("inf")])
    torch.save({**state_dict, "visual.proj": bad}, tmp_path / "nan.pt")
    with pytest.raises(NotFiniteError, match=r"'visual.proj' in 2 of 8192 values"):
        load(tmp_path / "nan.pt")
    assert "not finite, which load refuses: visual.proj (2 values)" in str(
        inspect(tmp_path / "nan.pt")
    )
    assert main(["convert", str(tmp_path / "nan.pt"), str(tmp_path / "out")]) == 2
    assert "same model" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    # Beyond float32 after the file's own float64.
    huge = state_dict["visual.proj"].double() * 1e300
    torch.save({**state_dict, "visual.proj": huge}, tmp_path / "huge.pt")
    with pytest.raises(NotFiniteError, match=r"visual.proj"):
        load(tmp_path / "huge.pt")
    broken = stretch(small)
    broken.model.ln_final.bias.data[3] = float("nan")
    for write in (lambda p: save(broken, p), lambda p: export(broken, p, "open_clip")):
        with pytest.raises(NotFiniteError, match=r"'ln_final.bias' are not finite in 1 of 64"):
            write(tmp_path / "broken")


def test_two_lengths_in_one_file(state_dict, tmp_path):
    res, plain = "positional_embedding_res", "positional_embedding"
    for name, changed in {
        "short-res.pt": {res: state_dict[res][:77]},
        "short.pt": {plain: state_dict[plain][:77]},
    }.items():
        torch.save({**state_dict, **changed}, tmp_path / name)
        with pytest.raises(LabError, match=r"two tables of positions differ.*(77|248).*(77|248)"):
            load(tmp_path / name)
        assert "expected two of one size" in str(inspect(tmp_path / name, digest=False))
    twice = {
        "text_model.embeddings.position_embedding.weight": torch.zeros(248, 8),
        "embeddings.position_embedding.weight": torch.zeros(77, 8),
    }
    with pytest.raises(LabError, match=r"no place for the weight 'embeddings.position"):
        text_weights(twice)


@pytest.mark.usefixtures("named")
def test_sizes_under_a_name_of_open_clip(small, tmp_path):
    """Nothing is resized: the pictures' size is the file's, and said; other sizes are refused."""
    weights = dict(small.model.state_dict())
    table_PW = torch.randn(1 + 9, 64)
    torch.save({**weights, "visual.positional_embedding": table_PW}, tmp_path / "large.pt")
    with pytest.warns(LabWarning, match="pictures of 48 pixels, not of 32"):
        clip = load("lab-test-weights", pretrained=tmp_path / "large.pt")
    assert clip.image_size == 48
    assert torch.equal(clip.model.visual.positional_embedding, table_PW)
    torch.save({**weights, "visual.positional_embedding": table_PW[:8]}, tmp_path / "odd.pt")
    with pytest.raises(LabError, match="8 positions of patches are no square"):
        load("lab-test-weights", pretrained=tmp_path / "odd.pt")
    two = {**weights, "text.positional_embedding": torch.zeros(248, 64)}
    torch.save(two, tmp_path / "two.pt")
    with pytest.raises(LabError, match="two tables of text positions"):
        load("lab-test-weights", pretrained=tmp_path / "two.pt")
    torch.save(prefixed("module._orig_mod.", weights), tmp_path / "wrapped.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LabWarning)
        assert same(load("lab-test-weights", pretrained=tmp_path / "wrapped.pt"), weights)


@pytest.fixture
def named(small, tmp_path):
    import open_clip

    (tmp_path / "lab-test-weights.json").write_text(json.dumps(small.card["model_cfg"]))
    open_clip.add_model_config(tmp_path / "lab-test-weights.json")


def test_a_folder_whose_config_says_other_pictures(small, tmp_path):
    folder = export(small, tmp_path / "out", "open_clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 48
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(LabError, match=r"do not fit its open_clip_config.json.*positional"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["W.SAFETENSORS", "w", "w.pt", "w.bin", "openai.PT", "openai.safetensors"]
)
def test_the_bytes_say_what_a_file_is(state_dict, tmp_path, name):
    path = tmp_path / name
    (torch.save if name.startswith("openai") else save_file)(state_dict, path)
    assert same(load(path), state_dict)
    assert inspect(path, digest=False).format == "Long-CLIP state dict"


def _zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


def _tar(path):
    (path.parent / "inner").write_bytes(b"1")
    with tarfile.open(path, "w") as file:
        file.add(path.parent / "inner", "weights.pt")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b""), "it is empty"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda p: p.write_text("<!DOCTYPE html><html></html>"), "web page"),
        (lambda p: p.write_text("\n<?xml version='1.0'?><Error/>"), "web page"),
        (lambda p: p.write_text('{"error": "not found"}'), "text, not weights.*not found"),
        (lambda p: p.write_bytes(gzip.compress(b"weights")), "gzip archive: unpack"),
        (_tar, "tar archive: unpack"),
        (_zip, r"zip archive \(readme.txt\)"),
        (lambda p: np.savez(p.open("wb"), a=np.zeros(3)), "NumPy's archive"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 30), "picture"),
        (lambda p: p.write_bytes(b"GGUF" + bytes(30)), "GGUF.*quantised"),
        (lambda p: p.write_bytes(bytes(range(256))), "neither safetensors nor PyTorch's"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)), "cut short or damaged"),
        (lambda p: p.write_bytes((999).to_bytes(8, "little") + b'{"a":'), "header of 999 bytes"),
        (lambda p: p.mkdir(), "not a saved model|is a folder|no weights"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path, write, message, name):
    write(tmp_path / name)
    for opened in (load, inspect, read_checkpoint):
        with pytest.raises(LabError, match=message):
            opened(tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "secret.pt"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.geteuid() == 0:  # whom no right stops
        monkeypatch.setattr(type(path), "open", _denied)
    with pytest.raises(LabError, match="cannot be read: Permission denied"):
        load(path)


def _denied(path, *_, **__):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("name", ["positional_embedding", "positional_embedding_res"])
@pytest.mark.parametrize("kind", [torch.Tensor.to_sparse, torch.Tensor.char, torch.Tensor.bool])
def test_positions_that_are_no_numbers_are_inspected(state_dict, golden, tmp_path, name, kind):
    good, path = golden / "longclip-tiny.pt", tmp_path / "odd.pt"
    torch.save({**state_dict, name: kind(state_dict[name])}, path)
    found = inspect(path)
    assert found.positions == {}
    assert "no floating point numbers, which load refuses" in str(found)
    if name == "positional_embedding":
        for one, other in ((good, path), (path, good)):
            with pytest.raises(LabError, match="cannot be compared"):
                inspect(one, original=other)


def test_a_safetensors_file_with_a_name_twice(tmp_path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"a":{entry},"a":{entry}}}'.encode()
    path = tmp_path / "twice.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(LabError, match="the name 'a' twice"):
        load(path)


@pytest.mark.parametrize(("image", "text", "heads"), [(32, 64, 1), (64, 32, 2), (96, 64, 1)])
def test_widths_that_heads_of_64_do_not_divide(tmp_path, image, text, heads):
    clip = _clip(image, text, heads) if image != 96 else _clip()
    weights = dict(clip.model.state_dict())
    if image == 96:
        weights["visual.conv1.weight"] = torch.zeros(96, 3, 16, 16)
    torch.save(weights, tmp_path / "narrow.pt")
    with pytest.raises(LabError, match=r"wide, which heads of 64.*name its architecture"):
        load(tmp_path / "narrow.pt")
    inspect(tmp_path / "narrow.pt", digest=False)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_rights_of_what_is_written_are_the_umasks(small, tmp_path, umask):
    before = os.umask(umask)
    try:
        for format in ("transformers", "diffusers", "open_clip"):
            export(small, tmp_path / format, format)
        export(small, tmp_path / "openai.pt", "openai")
        save(small, tmp_path / "own")
    finally:
        os.umask(before)
    written = list(tmp_path.rglob("*"))
    assert len(written) > 15
    for path in written:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("out.safetensors", "openai", "name it .pt"),
        ("out.SAFETENSORS", "longclip", "name it .pt"),
        ("out.pt", "transformers", "is a folder: name one without .pt"),
        ("file/out", "open_clip", "cannot be made a folder"),
        ("file", "openai", "exists"),
    ],
)
def test_places_that_a_format_cannot_have(small, tmp_path, name, format, message):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match=message):
        export(stretch(small), tmp_path / name, format)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_safetensors_are_unwrapped_as_pickles_are(golden, tmp_path):
    source = load(golden / "longclip-tiny.pt").model.state_dict()
    weights = torch.load(golden / "longclip-tiny.pt", weights_only=True)
    weights = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    save_file(prefixed("module._orig_mod.", weights), tmp_path / "wrapped.safetensors")
    loaded = load(tmp_path / "wrapped.safetensors").model.state_dict()
    assert all(torch.equal(loaded[name], source[name]) for name in source)
