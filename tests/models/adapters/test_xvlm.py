"""X-VLM's and X2-VLM's own files, against transformers' Swin, BEiT and BLIP's copy of BERT.

None of these is the code that the lab rebuilds the towers with (timm's and transformers' BERT).
"""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import evaluate
from longclip_lab.models import adapters, encode_images, encode_texts, inspect, load

EMBED = 24
SWIN = (
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    (r"^encoder\.", ""),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.o_proj", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
)
BEIT = (
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.", ""),
    (r"^layers", "blocks"),
    (r"lambda_(\d)", r"gamma_\1"),
    (r"relative_position_bias\.relative", "attn.relative"),
    (r"attention\.o_proj", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "fc_norm"),
)


class Parts:
    """The modules of one random model, and its release."""

    def __init__(self, image, text, pool):
        torch.manual_seed(3)
        self.image, self.text, self.pool = image, text, pool
        width = image.config.hidden_size
        self.vision_proj, self.text_proj = nn.Linear(width, EMBED), nn.Linear(64, EMBED)

    def heads(self):
        return {
            f"{name}.{part}": tensor
            for name in ("vision_proj", "text_proj")
            for part, tensor in getattr(self, name).state_dict().items()
        }

    def features(self, pixels_B3HW, ids_BT):
        """As get_vision_embeds, get_text_embeds and get_features of xvlm.py, not normalised."""
        images = self.pool(self.image(pixels_B3HW).last_hidden_state)
        mask_BT = (ids_BT != 0).long()
        texts = self.text(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return self.vision_proj(images), self.text_proj(texts[:, 0])


def fused(weights, bias):
    """Separate q, k and v as one weight; `bias` says what becomes of theirs."""
    whole = {k: v for k, v in weights.items() if ".attention." not in k}
    for name in [k for k in weights if k.endswith("attention.q_proj.weight")]:
        block = name.removesuffix("attention.q_proj.weight")
        rows = [f"{block}attention.{letter}_proj" for letter in "qkv"]
        whole[f"{block}attn.qkv.weight"] = torch.cat([weights[f"{row}.weight"] for row in rows])
        if bias == "one":
            whole[f"{block}attn.qkv.bias"] = torch.cat([weights[f"{row}.bias"] for row in rows])
        else:
            whole[f"{block}attn.q_bias"] = weights[f"{rows[0]}.bias"]
            whole[f"{block}attn.v_bias"] = weights[f"{rows[2]}.bias"]
    return whole


def text_weights(text, prefix):
    """The text mode's layers, and one more of those that look at pictures."""
    names = {k: v for k, v in text.state_dict().items() if "crossattention" not in k}
    layers = text.config.num_hidden_layers
    last = f"encoder.layer.{layers - 1}."
    fusing = {
        k.replace(last, f"encoder.layer.{layers}."): v + 1
        for k, v in text.state_dict().items()
        if k.startswith(last)
    }
    types = {"embeddings.token_type_embeddings.weight": torch.zeros(2, 64)}
    everything = {**names, **fusing, **types}
    return {f"{prefix}{k}": v for k, v in everything.items() if not k.endswith("position_ids")}


@pytest.fixture(scope="module")
def xvlm(text_tower, shaken):
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    image = shaken(transformers.SwinModel(config, add_pooling_layer=False))
    return Parts(image, shaken(text_tower(2)), lambda states_BTW: states_BTW.mean(dim=1))


@pytest.fixture(scope="module")
def x2vlm(text_tower, shaken):
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        **{"image_size": 48, "patch_size": 16, "hidden_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 256, "layer_norm_eps": 1e-6},
        **{"use_relative_position_bias": True, "use_mean_pooling": False},
    )
    image = shaken(transformers.BeitModel(config, add_pooling_layer=False))
    return Parts(image, shaken(text_tower(3)), lambda states_BTW: states_BTW[:, 1:].mean(dim=1))


@pytest.fixture(scope="module")
def xvlm_release(xvlm, renamed):
    """A fine-tuned state, as the retrieval checkpoints are."""
    image = fused(renamed(xvlm.image, *SWIN), "one")
    buffers = {
        "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16),
    }
    weights = {f"vision_encoder.{name}": value for name, value in {**image, **buffers}.items()}
    return {
        **weights,
        **text_weights(xvlm.text, "text_encoder."),
        **xvlm.heads(),
        "temp": torch.tensor(0.07),
        "itm_head.0.weight": torch.zeros(2, 2),
        "bbox_head.0.weight": torch.zeros(2, 2),
    }


@pytest.fixture(scope="module")
def x2vlm_release(x2vlm, renamed):
    """A pretraining state: `bert.` in the text encoder's names, and its head for masked words."""
    image = fused(renamed(x2vlm.image, *BEIT), "q and v")
    return {
        **{f"vision_encoder.{name}": value for name, value in image.items()},
        **text_weights(x2vlm.text, "text_encoder.bert."),
        **x2vlm.heads(),
        "text_encoder.cls.predictions.bias": torch.zeros(3),
        "temp": torch.tensor(0.07),
    }


@pytest.fixture(params=["xvlm", "x2vlm"])
def case(request, tmp_path):
    """Name, reference and file of either system."""
    release = request.getfixturevalue(f"{request.param}_release")
    path = tmp_path / f"{request.param}.th"
    torch.save({"model": release, "config": {"image_res": 64}}, path)
    return request.param, request.getfixturevalue(request.param), path


@torch.no_grad()
def test_features_are_those_of_the_release(case, ids_BT, compatibility):
    name, parts, path = case
    clip = load(path)
    generator = torch.Generator().manual_seed(0)
    pixels_B3HW = torch.randn(3, 3, clip.image_size, clip.image_size, generator=generator)
    images, texts = parts.features(pixels_B3HW, ids_BT)
    differences = [
        float((ours - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in (
            (clip.encode_image(pixels_B3HW), images),
            (clip.encode_text(ids_BT), texts),
        )
    ]
    assert max(differences) < 1e-5
    system, towers = {"xvlm": ("x-vlm", "Swin"), "x2vlm": ("x2-vlm", "BEiT-2")}[name]
    on = f"tiny {towers} and BERT, release layout"
    against = f"towers of transformers {transformers.__version__}"
    compatibility(system, "in", on, against, max(differences))


def test_what_the_shapes_tell(case):
    name, parts, path = case
    clip = load(path)
    assert clip.image_size == parts.image.config.image_size
    assert clip.card["architecture"] == {"xvlm": "X-VLM", "x2vlm": "X2-VLM"}[name]
    assert clip.card["released_tokens"] == 40
    assert clip.card["left_out"]["text_encoder, fusion with pictures"] == 26
    assert clip.card["left_out"]["temp"] == 1


def test_it_is_explained(case):
    name, parts, path = case
    found = inspect(path)
    assert found.format == {"xvlm": "X-VLM training state", "x2vlm": "X2-VLM training state"}[name]
    assert found.image_size == parts.image.config.image_size
    assert found.architecture["text"]["layers"] == parts.text.config.num_hidden_layers
    assert (found.context_length, found.embed_dim, found.compared) == (40, EMBED, True)
    assert any("fusion with pictures (26 tensors)" in note for note in found.notes)
    assert "a training state, beside the weights: config" in found.notes


def test_it_is_evaluated(case, pictures, texts):
    clip = load(case[2])
    assert encode_images(clip, pictures(clip.image_size)).shape == (3, EMBED)
    assert encode_texts(clip, texts).lengths_N.tolist() == [6, 17]
    record = evaluate(clip, world.pairs(4, seed=5)).records[0]
    assert record.num_truncated == 4


def test_without_the_masks_the_usual_size(xvlm_release, tmp_path):
    """Windows of 7 have pictures of 224 and windows of 12 of 384: eight windows a side."""
    weights = {name: value for name, value in xvlm_release.items() if "attn_mask" not in name}
    torch.save({"model": weights}, tmp_path / "xvlm.th")
    assert adapters.load_xvlm(tmp_path / "xvlm.th").image_size == 8 * 4 * 4


def test_other_image_towers_are_refused(xvlm_release, x2vlm_release, tmp_path):
    weights = {k: v for k, v in xvlm_release.items() if not k.startswith("vision_encoder.")}
    weights["vision_encoder.encoder.layers.0.self_attn.q_proj.weight"] = torch.zeros(2, 2)
    torch.save({"model": weights}, tmp_path / "clip-vit.th")
    with pytest.raises(LabError, match=r"not the layout of BLIP, X-VLM \(with a Swin\)"):
        adapters.load_xvlm(tmp_path / "clip-vit.th")
    torch.save({"model": x2vlm_release}, tmp_path / "x2vlm.th")
    with pytest.raises(LabError, match="a checkpoint of X2-VLM, not of X-VLM"):
        adapters.load_xvlm(tmp_path / "x2vlm.th")
