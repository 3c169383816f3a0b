"""The tiny CLIP is an ordinary open_clip model with a registered image tower."""

from __future__ import annotations

import open_clip
import timm
import torch

from longclip_lab.models import build_tiny, new_tiny


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
