"""Grad-CAM against its formula by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longclip_lab.attribution import patch_maps
from longclip_lab.errors import LabError
from longclip_lab.models import encode_texts, new_tiny, pixels


def by_hand(clip, images, texts, module, to_grid) -> np.ndarray:
    """Selvaraju et al., Equations 1 and 2."""
    kept = []
    handle = module.register_forward_hook(lambda _m, _i, out: kept.append(out))
    image_BD = clip.encode_image(pixels(clip, images))
    handle.remove()
    text_BD = encode_texts(clip, texts).features_ND
    total = F.cosine_similarity(image_BD, text_BD, dim=-1).sum()
    (gradient,) = torch.autograd.grad(total, kept[0])
    weights_BW11 = to_grid(gradient).mean((2, 3), keepdim=True)
    return F.relu((weights_BW11 * to_grid(kept[0])).sum(1)).detach().numpy()


def of_tokens(prefix: int, side: int):
    return lambda x: x[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


@pytest.mark.parametrize(
    ("name", "layer", "module", "prefix"),
    [
        ("class token", None, "transformer.resblocks.0", 1),
        ("class token", 1, "transformer.resblocks.0", 1),
        ("class token", 0, "conv1", None),
        ("average, norm after", None, "transformer.resblocks.1", 1),
        ("attention pool", None, "transformer.resblocks.1", 1),
        ("timm average, norm after", None, "trunk.blocks.1", 0),
        ("timm average, norm after", 0, "trunk.patch_embed", 0),
        ("timm class token", None, "trunk.blocks.0", 3),
        ("resnet", None, "layer4", None),
        ("resnet", -2, "layer3", None),
    ],
)
def test_equals_the_formula(name, layer, module, prefix, towers, drawn):
    clip = towers.image_clip(name)
    images, texts = drawn.images[:2], drawn.short[:2]
    maps = patch_maps(clip, images, texts, method="grad-cam", layer=layer)
    to_grid = (lambda x: x) if prefix is None else of_tokens(prefix, 3)
    expected = by_hand(clip, images, texts, clip.model.visual.get_submodule(module), to_grid)
    found = np.stack([m.scores for m in maps])
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_behind_the_last_block_a_class_token_leaves_no_gradient(towers, drawn):
    clip = towers.image_clip("class token")
    (one,) = patch_maps(clip, drawn.images[0], drawn.short[0], method="grad-cam", layer=-1)
    assert not one.scores.any()


def test_leaves_the_model_alone(trained, drawn):
    with torch.no_grad():
        patch_maps(trained, drawn.images[:1], drawn.short[:1], method="grad-cam")
        assert not torch.is_grad_enabled()
    for module in trained.model.modules():
        assert not module._forward_hooks
    assert all(parameter.grad is None for parameter in trained.model.parameters())


def test_unknown_layer(trained, drawn):
    with pytest.raises(LabError, match=r"no layer 4 .* expected 0 \(the patches\) to 3"):
        patch_maps(trained, drawn.images[0], "a boat", method="grad-cam", layer=4)


def test_frozen_weights(drawn):
    clip = new_tiny()
    expected = patch_maps(clip, drawn.images[0], "a boat", method="grad-cam")[0].scores
    clip.model.requires_grad_(False)
    found = patch_maps(clip, drawn.images[0], "a boat", method="grad-cam")[0].scores
    np.testing.assert_allclose(found, expected)
