"""The shapes of the released models, without their weights, are taken for what they are."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import transformers

from longclip_lab.models.adapters import RELEASES, rebuild, which_release
from longclip_lab.models.formats.openai import declip_config

WORDS = {"blip": 30524, "xvlm": 30522, "x2vlm": 30522}
LAYERS = {"blip": (12, 0), "xvlm": (12, 6), "x2vlm": (18, 12)}
"""Layers of the text encoder, and the first that looks at pictures: configs/med_config.json of
BLIP, configs/config_bert.json of X-VLM, configs/pretrain/x2vlm_base_4m.yaml of X2-VLM."""


def image_names(system):
    """Names and shapes of the image towers of the released base models."""
    if system == "blip":
        tower = timm.models.vision_transformer.VisionTransformer(img_size=384, num_classes=0)
        return {f"visual_encoder.{name}": weight for name, weight in tower.state_dict().items()}
    if system == "x2vlm":
        tower = timm.models.beit.Beit(
            num_classes=0, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1
        )
        return {f"vision_encoder.{name}": weight for name, weight in tower.state_dict().items()}
    tower = timm.create_model("swin_base_patch4_window12_384", num_classes=0)
    merged = r"layers\.(\d+)\.downsample"  # at the end of a stage, timm has it at the beginning
    names = {
        re.sub(merged, lambda match: f"layers.{int(match[1]) - 1}.downsample", name): weight
        for name, weight in tower.state_dict().items()
    }
    names["layers.0.blocks.1.attn_mask"] = torch.empty(64, 144, 144)
    return {f"vision_encoder.{name}": weight for name, weight in names.items()}


def text_names(system):
    layers, fusing = LAYERS[system]
    config = transformers.BlipTextConfig(
        vocab_size=WORDS[system], num_hidden_layers=layers, encoder_hidden_size=768
    )
    tower = transformers.BlipTextModel(config, add_pooling_layer=False)
    return {
        f"text_encoder.{name}": weight
        for name, weight in tower.state_dict().items()
        if "crossattention" not in name or int(name.split(".")[2]) >= fusing
    }


@pytest.mark.parametrize(
    ("system", "size", "layers", "width"),
    [("blip", 384, 12, 768), ("xvlm", 384, 6, 1024), ("x2vlm", 224, 12, 768)],
)
def test_base_models(system, size, layers, width):
    with torch.device("meta"):
        weights = {**image_names(system), **text_names(system)}
        for name, into in (("vision_proj", width), ("text_proj", 768)):
            weights[f"{name}.weight"] = torch.empty(256, into)
            weights[f"{name}.bias"] = torch.empty(256)
        assert which_release(weights) == system
        model, found, left_out = rebuild(RELEASES[system], weights)
    config = model.text_encoder.config
    assert (found, config.num_hidden_layers, config.num_attention_heads) == (size, layers, 12)
    assert (model.embed_dim, model.vision_proj.in_features) == (256, width)
    million = sum(weight.numel() for weight in model.image.parameters()) / 1e6
    assert million == pytest.approx(86, abs=1)
    assert set(left_out) == {"text_encoder, fusion with pictures"}


@pytest.mark.parametrize(("patch", "embed_dim"), [(32, 3072), (32, 512), (16, 512)])
def test_declips(patch, embed_dim):
    """declip88m_vitb32_declip and yfcc15m_vit_declip, by their config.yaml; ViT-B/16 beside it."""
    shapes = {
        "visual.conv1.weight": (768, 3, patch, patch),
        "visual.positional_embedding": ((224 // patch) ** 2 + 1, 768),
        "visual.proj": (768, embed_dim),
        "encode_text.ln_final.weight": (512,),
        "encode_text.token_embedding.weight": (49409, 512),
        "encode_text.positional_embedding": (77, 512),
    }
    for tower in ("visual", "encode_text"):
        shapes |= {f"{tower}.transformer.resblocks.{i}.ln_1.weight": (1,) for i in range(12)}
    config = declip_config({name: torch.empty(s, device="meta") for name, s in shapes.items()})
    assert config["embed_dim"] == embed_dim
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": patch}
    assert config["vision_cfg"] == vision
    text = {"width": 512, "heads": 8, "layers": 12, "vocab_size": 49408, "context_length": 77}
    assert text.items() <= config["text_cfg"].items()
