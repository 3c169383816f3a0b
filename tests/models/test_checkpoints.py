"""Long-CLIP checkpoint files: the golden one matches, and everything else is refused."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from longclip_lab.errors import LabError
from longclip_lab.models import load


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


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_wrappings_of_training_scripts(golden, state_dict, tmp_path, suffix):
    wrapped = {f"module.{name}": tensor for name, tensor in state_dict.items()}
    path = tmp_path / f"wrapped{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": wrapped, "epoch": 3}, path)
    else:
        save_file(wrapped, path)
    expected = load(golden / "longclip-tiny.pt").model.state_dict()
    loaded = load(path).model.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


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


def test_a_text_file(tmp_path):
    (tmp_path / "model.pt").write_text("not a model")
    with pytest.raises(LabError, match=r"not a whole checkpoint|refused"):
        load(tmp_path / "model.pt")


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
