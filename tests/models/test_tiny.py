"""The tiny CLIP and the bundled image tower with a neck."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file

from longclip_lab import world
from longclip_lab.models import (
    build_lotlip,
    build_tiny,
    data_folder,
    encode_images,
    load,
    new_tiny,
    save,
)
from longclip_lab.models.tiny import cells

# --- The tiny CLIP ---


def test_the_image_tower_is_registered_with_timm():
    tower = timm.create_model("longclip_lab_tiny_vit")
    assert tower.patch_embed.grid_size == (6, 6)
    assert tower.forward_features(torch.zeros(2, 3, 72, 72)).shape == (2, 36, 128)


def test_sizes():
    model = build_tiny(150, context_length=40)
    assert isinstance(model, open_clip.CLIP)
    assert (model.context_length, model.vocab_size) == (40, 150)
    assert 1.2e6 < sum(weight.numel() for weight in model.parameters()) < 1.6e6
    assert not [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


def test_grid_features_for_attribution():
    features = build_tiny(50).visual.forward_intermediates(torch.zeros(1, 3, 72, 72), indices=1)
    assert features["image_intermediates"][0].shape == (1, 128, 6, 6)


def test_new_tiny_is_seeded_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = new_tiny(seed=1), new_tiny(seed=1), new_tiny(seed=2)
    assert torch.equal(torch.rand(3), expected)
    weights = [clip.model.token_embedding.weight for clip in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_properties(tiny):
    assert (tiny.context_length, tiny.embed_dim, tiny.image_size) == (77, 128, 72)
    assert tiny.image_mean == tiny.image_std == (0.5, 0.5, 0.5)
    assert tiny.device == torch.device("cpu")
    assert tiny.num_parameters == sum(weight.numel() for weight in tiny.model.parameters())
    assert tiny.vocab_size == tiny.tokenizer.vocab_size


# --- The tower with a neck ---


@pytest.fixture(scope="module")
def clip():
    return build_lotlip("tiny-scenes", "world", 2)


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(120, seed=world.SELECTION_SEED)


def test_trunk_and_neck_are_the_bundled_ones(clip):
    state = clip.model.visual.trunk.state_dict()
    trunk = load_file(data_folder() / "tiny-tower" / "tower.safetensors")
    neck = load_file(data_folder() / "tiny-scenes" / "neck.safetensors")
    for name, tensor in neck.items():
        assert torch.equal(state[name], tensor.float())
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(state[name], trunk[f"trunk.{name}"].float())
    assert not any(p.requires_grad for p in clip.model.visual.parameters())


def test_cells_are_means_of_two_by_two_patches():
    tokens = torch.arange(36.0).reshape(1, 36, 1)
    assert cells(tokens)[0, :, 0].tolist() == [
        np.mean([6 * (2 * row + i) + 2 * column + j for i in (0, 1) for j in (0, 1)])
        for row in range(3)
        for column in range(3)
    ]


def test_features_are_normalised_and_as_wide_as_the_neck(clip, pairs):
    features = encode_images(clip, pairs.images)
    assert features.shape == (120, 256)
    assert clip.embed_dim == 256
    assert features.mean(dim=1).abs().max() < 1e-5
    assert torch.allclose(features.std(dim=1, correction=0), torch.ones(120), atol=1e-3)


def test_which_thing_is_red_is_linear_in_the_feature(clip):
    """Two things that swap their colours: the mean over patches can hardly tell, the neck can."""
    scenes = world.pairs(200, seed=world.SELECTION_SEED).scenes
    swapped = [
        one.change(0, colour=one.things[1].colour).change(1, colour=one.things[0].colour)
        for one in scenes
    ]
    pictures = [world.draw_all(group) for group in (scenes, swapped)]
    plain = build_lotlip("tiny-tower", "world", 0)
    moved = {}
    for name, model in (("plain", plain), ("neck", clip)):
        one, other = (torch.nn.functional.normalize(encode_images(model, p)) for p in pictures)
        spread = (one - one.mean(0)).norm(dim=1).mean()
        moved[name] = float((one - other).norm(dim=1).mean() / spread)
    assert moved["neck"] > 2 * moved["plain"]


def test_it_comes_back_from_a_folder(clip, pairs, tmp_path):
    again = load(save(clip, tmp_path / "model"))
    features = [encode_images(model, pairs.images[:4]) for model in (clip, again)]
    assert torch.allclose(*features, atol=1e-6)
