"""What `inspect` says of files and folders of every format."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from longclip_lab import cli, models
from longclip_lab.errors import LabError
from longclip_lab.models import data_folder, inspect, stretch
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.text import get_tokenizer

WORDS = 49408
CONFIG = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {
        **{"context_length": 77, "vocab_size": WORDS, "width": 64, "heads": 1, "layers": 3},
    },
}
IMAGE = {"width": 64, "layers": 2, "heads": 1, "patch": 16, "image_size": 32}
TEXT = {"width": 64, "layers": 3, "heads": 1, "vocabulary": WORDS}


@pytest.fixture(scope="module")
def short():
    """A tiny CLIP of OpenAI's architecture."""
    torch.manual_seed(0)
    model = build_model(CONFIG)
    return assemble(model, CONFIG, get_tokenizer("clip"), preprocess_card(model), "short")


@pytest.fixture(scope="module")
def long(short):
    """The same, stretched to 248 positions."""
    return stretch(short)


@pytest.fixture(scope="module")
def written(short, long, tmp_path_factory):
    """Both in every format that the lab writes."""
    folder = tmp_path_factory.mktemp("written")
    models.export(short, folder / "openai.pt", "openai")
    models.export(long, folder / "longclip.pt", "longclip")
    for name in ("transformers", "diffusers", "open_clip"):
        models.export(long, folder / name, name)
    models.save(long, folder / "own", dtype=torch.float16)
    return folder


def facts_of(found):
    """Both towers' sizes, without the names that each library has for their kind."""
    image, text = (found.architecture.get(tower, {}) for tower in ("image", "text"))
    return {k: v for k, v in image.items() if k in IMAGE}, {
        k: v for k, v in text.items() if k in TEXT
    }


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("openai.pt", "OpenAI state dict"),
        ("longclip.pt", "Long-CLIP state dict"),
        ("transformers", "transformers CLIPModel"),
        ("open_clip", "open_clip folder"),
        ("own", "longclip_lab folder"),
    ],
)
def test_architecture_and_sizes(written, short, long, name, format):
    found = inspect(written / name)
    model = (short if name == "openai.pt" else long).model
    assert found.format == format
    assert facts_of(found) == (IMAGE, TEXT)
    assert (found.embed_dim, found.image_size) == (48, 32)
    assert found.context_length == (77 if name == "openai.pt" else 248)
    assert (found.compared, found.missing, found.unexpected) == (True, [], [])
    spare = 248 * 64 if name == "longclip.pt" else 0  # its second table
    image = sum(weight.numel() for weight in model.visual.parameters())
    whole = sum(weight.numel() for weight in model.parameters())
    assert found.parameters == {
        "image": image,
        "text": whole - image - 1 + spare,
        "other": 1,
        "total": whole + spare,
    }
    assert found.dtypes == {"float16" if name == "own" else "float32": whole + spare}


@pytest.mark.parametrize("name", ["longclip.pt", "transformers", "open_clip", "own"])
def test_stretched_positions_are_seen(written, name):
    positions = inspect(written / name, digest=False).positions
    expected = {"length": 248, "kept": 20, "stretched": 228, "method": "kps", "ratio": 4}
    assert {key: positions[key] for key in expected} == expected


def test_trained_positions_are_seen(written, tmp_path):
    weights = torch.load(written / "longclip.pt", weights_only=True)
    weights["positional_embedding_res"] += torch.randn(248, 64) * 0.1
    torch.save(weights, tmp_path / "trained.pt")
    found = inspect(tmp_path / "trained.pt").positions
    assert found["method"] == "kps"
    assert found["seen"][-1].endswith("trained")
    assert "still the stretching of 77 positions" in found["seen"][1]
    weights["positional_embedding"] = weights.pop("positional_embedding_res")
    torch.save(weights, tmp_path / "merged.pt")
    merged = inspect(tmp_path / "merged.pt").positions
    assert (merged["kept"], merged["method"]) == (248, "trained, or not stretched")


def test_positions_beside_the_original(written, long, tmp_path):
    seen = inspect(written / "longclip.pt", original=written / "openai.pt").positions["seen"][-1]
    assert seen.startswith("beside openai.pt: the first 20 rows are the original's; the others are")
    other = build_model(CONFIG).state_dict()
    torch.save(other, tmp_path / "other.pt")
    seen = inspect(written / "longclip.pt", original=tmp_path / "other.pt").positions["seen"][-1]
    assert "off the original's by" in seen


def test_the_golden_longclip(golden):
    """A checkpoint in the released layout, written with Long-CLIP's own code."""
    found = inspect(golden / "longclip-tiny.pt")
    assert found.format == "Long-CLIP state dict"
    assert found.context_length == 248
    assert found.positions["kept"] == 20
    assert found.missing == []


def test_a_lotlip(tmp_path):
    clip = models.build_lotlip("tiny-tower", "world", 2)
    weights = {k: v.contiguous() for k, v in models.lotlip_state_dict(clip).items()}
    save_file(weights, tmp_path / "lotlip.safetensors")
    found = inspect(tmp_path / "lotlip.safetensors")
    assert found.format == "LoTLIP state dict"
    assert found.missing == found.unexpected == []
    assert found.notes == ["2 of the word embeddings are corner tokens"]
    assert (found.image_size, found.embed_dim) == (72, 128)


def test_openais_archive(short, tmp_path):
    """A TorchScript archive with modules and code, as OpenAI released its models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out of PyTorch
        torch.jit.save(torch.jit.script(short.model), tmp_path / "ViT.pt")
    found = inspect(tmp_path / "ViT.pt")
    assert (found.format, found.container) == ("OpenAI TorchScript archive", "TorchScript archive")
    assert found.missing == found.unexpected == []
    assert facts_of(found) == (IMAGE, TEXT)


def test_a_pipelines_text_encoders(written):
    found = inspect(written / "diffusers")
    assert found.format == "diffusers pipeline"
    assert list(found.parts) == ["text_encoder"]
    part = found.parts["text_encoder"]
    assert part.format == "transformers CLIPTextModelWithProjection"
    assert (found.context_length, facts_of(part)[1]) == (248, TEXT)
    assert part.missing == part.unexpected == []


def test_what_is_missing_and_what_is_too_much(written, tmp_path):
    weights = torch.load(written / "openai.pt", weights_only=True)
    del weights["transformer.resblocks.1.ln_1.bias"]
    weights["transformer.resblocks.0.lora.weight"] = torch.zeros(2)
    weights["visual.proj"] = torch.zeros(64, 49)
    torch.save(weights, tmp_path / "odd.pt")
    found = inspect(tmp_path / "odd.pt")
    assert found.missing == ["transformer.resblocks.1.ln_1.bias"]
    assert found.unexpected == ["transformer.resblocks.0.lora.weight"]
    assert "visual.proj is [64, 49], the architecture has [64, 48]" in found.notes
    folder = shutil.copytree(written / "transformers", tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.extra"] = tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors")
    found = inspect(folder)
    assert found.missing == ["visual_projection.weight"]
    assert found.unexpected == ["vision_model.extra"]


def test_sizes_and_digest(written):
    path = written / "openai.pt"
    found = inspect(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.num_bytes == path.stat().st_size
    assert inspect(path, digest=False).sha256 is None


def test_the_bundled_model():
    found = inspect(data_folder() / "tiny")
    assert found.architecture["image"] == {"kind": "longclip_lab_tiny_vit", "image_size": 72}
    assert found.dtypes.keys() == {"float16"}
    assert found.missing == []


def test_a_training_state_of_an_unknown_model(tmp_path):
    weights = {f"module.enc.{i}.{part}": torch.zeros(3) for i in range(4) for part in "ab"}
    state = {"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(state, tmp_path / "state.pt")
    found = inspect(tmp_path / "state.pt")
    assert (found.format, found.opened_by, found.compared) == ("unknown", None, False)
    assert found.notes[:2] == ["enc.*.a: 4 tensors, 12 values", "enc.*.b: 4 tensors, 12 values"]
    assert "unwrapped: state_dict, module." in found.notes
    assert "a training state, beside the weights: epoch, optimizer" in found.notes
    assert "cannot be told" in str(found)
    torch.save({"net": {"enc": {"w": torch.zeros(2)}}, "step": 1}, tmp_path / "nested.pt")
    nested = inspect(tmp_path / "nested.pt").notes
    assert nested[0] == "enc.w: 1 tensor, 2 values"
    assert "unwrapped: net" in nested


def test_files_of_the_old_pytorch_and_open_clip_without_config(written, tmp_path):
    weights = torch.load(written / "openai.pt", weights_only=True)
    plain = {k: v for k, v in weights.items() if v.ndim or k == "logit_scale"}
    torch.save(plain, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = inspect(tmp_path / "old.pt")
    assert found.container == "PyTorch, before 1.6"
    assert found.format == "state dict in OpenAI's layout (OpenAI or open_clip)"
    custom = {"text.transformer.a": torch.zeros(1), "visual.trunk.b": torch.zeros(1)}
    torch.save(custom, tmp_path / "custom.pt")
    assert inspect(tmp_path / "custom.pt").format == "open_clip state dict without its config"
    alone = shutil.copy(written / "transformers" / "model.safetensors", tmp_path)
    found = inspect(alone)
    assert found.format == "weights of transformers' CLIP, without the folder's config.json"
    assert found.positions["method"] == "kps"


def test_other_models_of_transformers(tmp_path):
    config = transformers.AlignConfig(
        text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1},
        vision_config={"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 32},
    )
    transformers.AlignModel(config).save_pretrained(tmp_path / "align")
    found = inspect(tmp_path / "align")
    assert found.format == "transformers AlignModel"
    assert found.opened_by == "load(FOLDER): an adapter"
    assert found.context_length == 512
    assert found.missing == found.unexpected == []


def test_nothing_with_code_in_it_is_opened(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(LabError, match="refused"):
        inspect(tmp_path / "module.pt")


@pytest.mark.parametrize("name", ["empty.pt", "cut.pt", "cut.safetensors"])
def test_damaged_files(written, tmp_path, name):
    source = written / ("openai.pt" if name.endswith(".pt") else "transformers/model.safetensors")
    content = source.read_bytes()
    (tmp_path / name).write_bytes(b"" if name == "empty.pt" else content[: len(content) // 2])
    with pytest.raises(LabError, match="not a whole"):
        inspect(tmp_path / name)


def test_places_without_weights(tmp_path):
    with pytest.raises(LabError, match="There is no file or folder"):
        inspect(tmp_path / "nowhere.pt")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LabError, match=r"no weights in .*: it holds notes\.txt"):
        inspect(tmp_path)


def test_the_command(written, capsys):
    assert cli.main(["inspect", str(written / "longclip.pt")]) == 0
    shown = capsys.readouterr().out
    assert "Long-CLIP state dict" in shown
    assert "248: 20 kept, 228 stretched, method kps, ratio 4" in shown
    assert cli.main(["inspect", str(written / "longclip.pt"), "--json", "--no-digest"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["positions"]["stretched"] == 228
    assert cli.main(["inspect", "nowhere.pt"]) == 2
