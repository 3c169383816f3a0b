"""DeCLIP's release format, against its own forward written out.

The formulas are those of Sense-GVT/DeCLIP, prototype/model/clip.py, text_encoder/
text_transformer.py and image_encoder/{base,visual}_transformer.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models import encode_images, encode_texts, inspect, load, save, stretch

WIDTH, EMBED, PATCH, SIZE, LAYERS, CONTEXT = 64, 48, 8, 16, 2, 77
WORDS = 49409  # OpenAI's 49,408 and <|mask|>
MASK, START, END = 49406, 49407, 49408


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights under the names that the release has, heads and prefix included."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    tensors = {
        "logit_scale": draw(1),
        "visual.class_embedding": draw(WIDTH),
        "visual.positional_embedding": draw((SIZE // PATCH) ** 2 + 1, WIDTH),
        "visual.proj": draw(WIDTH, EMBED),
        "visual.conv1.weight": draw(WIDTH, 3, PATCH, PATCH),
        "encode_text.positional_embedding": draw(CONTEXT, WIDTH),
        "encode_text.token_embedding.weight": draw(WORDS, WIDTH),
        "encode_text.text_projection.weight": draw(EMBED, WIDTH),
        "encode_text.text_projection.bias": draw(EMBED),
        "projector.linear1.weight": draw(4, EMBED),
        "projector.bn1.running_mean": draw(4),
        "predictor.layer2.bias": draw(4),
        "text_label_predictor.weight": draw(3, EMBED),
    }
    norms = ["visual.ln_pre", "visual.ln_post", "encode_text.ln_final"]
    for tower in ("visual", "encode_text"):
        for layer in range(LAYERS):
            block = f"{tower}.transformer.resblocks.{layer}"
            norms += [f"{block}.ln_1", f"{block}.ln_2"]
            tensors[f"{block}.attn.in_proj_weight"] = draw(3 * WIDTH, WIDTH)
            tensors[f"{block}.attn.in_proj_bias"] = draw(3 * WIDTH)
            for name, out, into in (
                ("attn.out_proj", WIDTH, WIDTH),
                ("mlp.c_fc", 4 * WIDTH, WIDTH),
                ("mlp.c_proj", WIDTH, 4 * WIDTH),
            ):
                tensors[f"{block}.{name}.weight"] = draw(out, into)
                tensors[f"{block}.{name}.bias"] = draw(out)
    for norm in norms:
        tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = 1 + draw(WIDTH), draw(WIDTH)
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


@pytest.fixture
def file(weights, tmp_path):
    """A training state as their solver saves it."""
    path = tmp_path / "vitb32.pth.tar"
    torch.save({"model": weights, "optimizer": {"state": {}, "lr": 0.1}, "last_iter": 7}, path)
    return path


def norm(weights, name, states):
    parameters = weights[f"module.{name}.weight"], weights[f"module.{name}.bias"]
    return nn.functional.layer_norm(states, states.shape[-1:], *parameters)


def linear(weights, name, states):
    return states @ weights[f"module.{name}.weight"].T + weights[f"module.{name}.bias"]


def blocks(weights, tower, states_BTW, mask=None):
    for layer in range(LAYERS):
        name = f"{tower}.transformer.resblocks.{layer}"
        attention = nn.MultiheadAttention(WIDTH, WIDTH // 64)
        prefix = f"module.{name}.attn."
        attention.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
        normed_TBW = norm(weights, f"{name}.ln_1", states_BTW).transpose(0, 1)
        attended = attention(normed_TBW, normed_TBW, normed_TBW, attn_mask=mask)[0]
        states_BTW = states_BTW + attended.transpose(0, 1)
        hidden = linear(weights, f"{name}.mlp.c_fc", norm(weights, f"{name}.ln_2", states_BTW))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        states_BTW = states_BTW + linear(weights, f"{name}.mlp.c_proj", hidden)
    return states_BTW


def their_images(weights, pixels_B3HW):
    patches = nn.functional.conv2d(pixels_B3HW, weights["module.visual.conv1.weight"], stride=PATCH)
    patches = patches.flatten(2).transpose(1, 2)
    first = weights["module.visual.class_embedding"].expand(len(patches), 1, -1)
    states = torch.cat([first, patches], dim=1) + weights["module.visual.positional_embedding"]
    states = blocks(weights, "visual", norm(weights, "visual.ln_pre", states))
    return norm(weights, "visual.ln_post", states[:, 0]) @ weights["module.visual.proj"]


def their_texts(weights, ids_BT):
    states = weights["module.encode_text.token_embedding.weight"][ids_BT]
    states = states + weights["module.encode_text.positional_embedding"]
    mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
    states = norm(weights, "encode_text.ln_final", blocks(weights, "encode_text", states, mask))
    ends = states[torch.arange(len(ids_BT)), ids_BT.argmax(dim=-1)]
    return linear(weights, "encode_text.text_projection", ends)


def their_ids(clip, texts):
    """Their tokenizer: the same word pieces, framed by ids one higher than OpenAI's."""
    ids_BT = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row_T, text in zip(ids_BT, texts, strict=True):
        pieces = [START, *clip.tokenizer.encode(text), END]
        row_T[: len(pieces)] = torch.tensor(pieces)
    return ids_BT


@torch.no_grad()
def test_features_are_those_of_their_forward(file, weights, compatibility):
    clip = load(file)
    texts = ["A red boat.", "two children fly a very long kite on the beach, far from the dog"]
    expected_texts = their_texts(weights, their_ids(clip, texts))
    pictures = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels_B3HW = ((pictures / 255 - mean) / std).permute(0, 3, 1, 2)
    differences = [
        float((ours - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in (
            (encode_texts(clip, texts).features_ND, expected_texts),
            (encode_images(clip, pictures), their_images(weights, pixels_B3HW)),
        )
    ]
    assert max(differences) < 1e-5
    on = "tiny ViT, release layout with heads"
    compatibility("declip", "in", on, "its forward written out", max(differences))


def test_what_the_training_used_is_named(file):
    clip = load(file)
    assert clip.card["left_out"] == {"predictor": 1, "projector": 2, "text_label_predictor": 1}
    assert (clip.name, clip.context_length, clip.embed_dim) == ("vitb32", CONTEXT, EMBED)
    assert clip.vocab_size == clip.tokenizer.vocab_size == WORDS - 1


def test_it_is_explained(file):
    found = inspect(file)
    assert found.format == "DeCLIP training state"
    assert (found.context_length, found.embed_dim, found.image_size) == (CONTEXT, EMBED, SIZE)
    assert found.missing == found.unexpected == []
    assert any("projector (2 tensors)" in note for note in found.notes)
    assert found.notes[-1] == "a training state, beside the weights: optimizer, last_iter"


@torch.no_grad()
def test_it_is_an_open_clip_model_like_any_other(file, tmp_path):
    clip = load(file)
    longer = stretch(load(save(clip, tmp_path / "folder")))
    assert longer.context_length == 248
    assert encode_texts(longer, ["a boat " * 100]).lengths_N.item() == 202


def test_files_that_do_not_fit(weights, tmp_path):
    def saved(name, tensors):
        torch.save({"model": tensors}, tmp_path / name)
        return tmp_path / name

    fewer = {name: tensor for name, tensor in weights.items() if "ln_final.bias" not in name}
    with pytest.raises(LabError, match=r"does not fit DeCLIP.*ln_final\.bias"):
        load(saved("fewer.pth", fewer))
    with pytest.raises(LabError, match=r"does not fit DeCLIP.*ema\.weight"):
        load(saved("more.pth", {**weights, "module.ema.weight": torch.ones(1)}))
    resnet = {name: tensor for name, tensor in weights.items() if "class_embedding" not in name}
    with pytest.raises(LabError, match="ResNet"):
        load(saved("resnet.pth", resnet))
    torch.save({"model": SimpleNamespace(**{"weights": 1})}, tmp_path / "code.pth")
    with pytest.raises(LabError, match="refused"):
        load(tmp_path / "code.pth")
