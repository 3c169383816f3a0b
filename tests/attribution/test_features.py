"""Patches and tokens in the space that pictures and texts share."""

from __future__ import annotations

import pytest
import torch

from longclip_lab.attribution import patch_features, token_features
from longclip_lab.errors import LabError
from longclip_lab.models import pixels
from longclip_lab.models.towers import end_positions

AVERAGED = [
    "average, norm before",
    "average, norm after",
    "timm average, norm after",
    "timm average, norm before",
]
OTHERS = [
    "class token",
    "attention pool",
    "resnet",
    "timm class token",
    "timm attention pool",
    "timm maximum",
]

TEXTS = ["causal", "both ways", "bert", "causal registers", "bert registers"]


@pytest.mark.parametrize("name", AVERAGED)
@torch.no_grad()
def test_patches_average_to_the_picture(name, towers, drawn):
    clip = towers.image_clip(name)
    found = patch_features(clip, pixels(clip, drawn.images[:3]))
    assert found.patches_BhwD.shape == (3, 3, 3, 32)
    expected_BD = clip.encode_image(pixels(clip, drawn.images[:3]))
    torch.testing.assert_close(found.images_BD, expected_BD)
    torch.testing.assert_close(found.patches_BhwD.mean((1, 2)), expected_BD)
    assert found.adds_up


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_other_towers(name, towers, drawn):
    clip = towers.image_clip(name)
    found = patch_features(clip, pixels(clip, drawn.images[:3]))
    assert found.patches_BhwD.shape == (3, 3, 3, 32)
    torch.testing.assert_close(found.images_BD, clip.encode_image(pixels(clip, drawn.images[:3])))
    assert not found.adds_up


@torch.no_grad()
def test_class_token_takes_the_same_way_out(towers, drawn):
    """If the tower pooled its second token, the feature would be the first patch's."""
    clip = towers.image_clip("class token")
    visual = clip.model.visual
    pixels_B3HW = pixels(clip, drawn.images[:3])
    found = patch_features(clip, pixels_B3HW)
    states = visual.transformer(visual._embeds(pixels_B3HW))
    pooled, _ = visual._pool(states.roll(-1, dims=1))
    torch.testing.assert_close(found.patches_BhwD[:, 0, 0], pooled @ visual.proj)


@torch.no_grad()
@pytest.mark.parametrize("name", ["attention pool", "resnet", "timm attention pool"])
def test_attention_pool_over_equal_patches(name, towers):
    """Attention over equal values gives that value, so a patch's feature is the picture's."""
    clip = towers.image_clip(name)
    visual = clip.model.visual
    pixels_B3HW = torch.zeros(1, 3, clip.image_size, clip.image_size)
    if name == "resnet":
        with torch.random.fork_rng(devices=[]):
            state_BChw = torch.randn(1, 256, 1, 1).expand(1, 256, 3, 3)
        handle = visual.layer4.register_forward_hook(lambda *_: state_BChw)
        positions = visual.attnpool.positional_embedding.detach().clone()
        visual.attnpool.positional_embedding.zero_()
    else:
        last = visual.transformer if name == "attention pool" else visual.trunk.norm
        handle = last.register_forward_hook(lambda _m, _i, out: out[:, :1].expand_as(out))
    try:
        found = patch_features(clip, pixels_B3HW)
    finally:
        handle.remove()
        if name == "resnet":
            visual.attnpool.positional_embedding.copy_(positions)
    expected_BhwD = found.images_BD[:, None, None].expand_as(found.patches_BhwD)
    torch.testing.assert_close(found.patches_BhwD, expected_BhwD)


@torch.no_grad()
def test_tiny_adds_up(trained, drawn):
    assert patch_features(trained, pixels(trained, drawn.images)).adds_up


def test_unknown_towers(towers, drawn, monkeypatch):
    clip = towers.image_clip("class token")
    monkeypatch.setitem(clip.model._modules, "visual", torch.nn.Identity())
    with pytest.raises(LabError, match="Identity is no image tower"):
        patch_features(clip, torch.zeros(1, 3, 72, 72))


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_the_pooled_token_is_the_text(name, towers, drawn):
    clip = towers.text_clip(name)
    ids_BT = clip.tokenize(drawn.short).ids_BT
    features_BTD = token_features(clip, ids_BT)
    pooled_B = {
        "causal": lambda: end_positions(clip.model, ids_BT),
        "both ways": lambda: torch.full((len(ids_BT),), 76),
        "bert": lambda: torch.zeros(len(ids_BT), dtype=torch.long),
    }[name.removesuffix(" registers")]()
    read_BD = features_BTD[torch.arange(len(ids_BT)), pooled_B]
    torch.testing.assert_close(read_BD, clip.encode_text(ids_BT))


@torch.no_grad()
def test_a_causal_token_knows_only_what_stands_before_it(towers, drawn):
    clip = towers.text_clip("causal")
    ids_BT = clip.tokenize(drawn.long[:1]).ids_BT
    other_BT = ids_BT.clone()
    other_BT[0, 10] = ids_BT[0, 11]
    before, after = token_features(clip, ids_BT)[0], token_features(clip, other_BT)[0]
    torch.testing.assert_close(before[:10], after[:10])
    assert (before[10:] - after[10:]).abs().amax(-1).min() > 1e-4


def test_nothing_is_left_behind(towers, drawn):
    clip = towers.text_clip("causal")
    clip.model.train()
    try:
        token_features(clip, clip.tokenize(drawn.short[:1]).ids_BT)
        assert clip.model.training
    finally:
        clip.model.eval()
    assert not any(module._forward_hooks for module in clip.model.modules())
