"""Attention and rollout: labels, the position that is read off, and closed forms."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from longclip_lab.attribution import (
    PATCH_METHODS,
    TOKEN_METHODS,
    attention,
    patch_maps,
    rollout,
    token_maps,
)
from longclip_lab.errors import LabError
from longclip_lab.models import add_corner_tokens, stretch
from longclip_lab.models.corner_tokens import CornerTokens, give_corners

TEXT = "a red boat on a lake."
POOLED_BY_TEXT = {"causal": 8, "both ways": 76, "bert": 0}
POOLED_BY_IMAGE = {
    "class token": 0,
    "average, norm before": None,
    "timm class token": 0,
    "timm attention pool": None,
}


@pytest.mark.parametrize(("name", "pooled"), POOLED_BY_TEXT.items())
def test_labels_and_pooled_position_of_texts(towers, name, pooled):
    found = attention(towers.text_clip(name), TEXT)
    assert found.tower == "text"
    assert found.labels[:3] == ("[start]", "a", "red")
    assert found.labels[8] == "[end]"
    assert set(found.labels[9:]) <= {"[padding]"}
    assert found.pooled == pooled
    assert found.weights.shape == (2, 2, len(found.labels), len(found.labels))
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(("name", "pooled"), POOLED_BY_IMAGE.items())
def test_labels_and_pooled_position_of_pictures(towers, drawn, name, pooled):
    found = attention(towers.image_clip(name), drawn.images[0])
    assert found.tower == "image"
    assert found.pooled == pooled
    patches = tuple(f"{row},{column}" for row in range(3) for column in range(3))
    assert found.labels[-9:] == patches
    special = {"class token": 1, "average, norm before": 1, "timm class token": 3}.get(name, 0)
    assert found.labels[:-9] == ("[class]", "[register 1]", "[register 2]")[:special]
    assert found.weights.shape == (2, 2, len(found.labels), len(found.labels))
    assert found.source.shape == (72, 72, 3)


def test_layer_and_head_keep_both_axes(trained):
    whole = attention(trained, TEXT).weights
    one_layer = attention(trained, TEXT, layer=-1).weights
    one_head = attention(trained, TEXT, layer=1, head=-1).weights
    np.testing.assert_allclose(one_layer, whole[2:], atol=1e-6)
    np.testing.assert_allclose(one_head, whole[1:2, 3:], atol=1e-6)


def test_a_path_is_a_picture_when_told_so(trained, drawn, tmp_path):
    from PIL import Image

    Image.fromarray(drawn.images[0]).save(tmp_path / "picture.png")
    from_path = attention(trained, str(tmp_path / "picture.png"), tower="image")
    np.testing.assert_allclose(from_path.weights, attention(trained, drawn.images[0]).weights)


def test_wrong_questions(trained, drawn, towers):
    with pytest.raises(LabError, match="a layer from -3 to 2, got 3"):
        attention(trained, TEXT, layer=3)
    with pytest.raises(LabError, match="a head from -4 to 3, got 4"):
        attention(trained, TEXT, head=4)
    with pytest.raises(LabError, match="one picture, got 12"):
        attention(trained, drawn.images)
    with pytest.raises(LabError, match="no plain transformer layers"):
        attention(towers.image_clip("resnet"), drawn.images[0])
    with pytest.raises(LabError, match="pools its patches by 'max'"):
        patch_maps(towers.image_clip("timm maximum"), drawn.images[0], TEXT, "attention")


@pytest.mark.parametrize("layer", [0, -1])
def test_methods_read_the_row_of_the_end_token(trained, drawn, layer):
    (found,) = token_maps(trained, drawn.images[0], TEXT, "attention", layer=layer, head=1)
    row = attention(trained, TEXT, layer=layer, head=1).weights[0, 0, 8]
    np.testing.assert_allclose(found.scores, row[1:8], atol=1e-6)
    assert found.tokens == ["a", "red", "boat", "on", "a", "lake", "."]
    assert found.details["elsewhere"] == pytest.approx(row[0] + row[8], abs=1e-5)


def test_methods_average_the_rows_of_towers_that_average(trained, drawn):
    (found,) = patch_maps(trained, drawn.images[0], TEXT, "attention")
    weights = attention(trained, drawn.images[0], layer=-1).weights[0]
    np.testing.assert_allclose(found.scores, weights.mean((0, 1)).reshape(6, 6), atol=1e-6)


def test_methods_read_the_row_of_the_class_token(towers, drawn):
    clip = towers.image_clip("timm class token")
    (found,) = patch_maps(clip, drawn.images[0], TEXT, "attention")
    weights = attention(clip, drawn.images[0], layer=-1).weights[0].mean(0)
    np.testing.assert_allclose(found.scores, weights[0, 3:].reshape(3, 3), atol=1e-6)


def test_attention_pool_reads_through_its_own_weights(towers, drawn):
    """SigLIP's towers: the pool's attention times that of the layer."""
    clip = towers.image_clip("timm attention pool")
    (found,) = patch_maps(clip, drawn.images[0], TEXT, "attention")
    states = []
    handle = clip.model.visual.trunk.norm.register_forward_hook(lambda m, i, o: states.append(o))
    weights = attention(clip, drawn.images[0], layer=-1).weights[0].mean(0)
    handle.remove()
    pool = clip.model.visual.trunk.attn_pool
    query = pool.q(pool.latent).unflatten(-1, (2, 16))[0, 0]
    key = pool.kv(states[0])[0, :, :32].unflatten(-1, (2, 16))
    read = (torch.einsum("hx,phx->hp", query, key) / 4).softmax(-1).mean(0).detach().numpy()
    np.testing.assert_allclose(found.scores, (read @ weights).reshape(3, 3), atol=1e-6)


def test_rollout_is_the_product_over_layers():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(3, 2, 5, 5, generator=generator).softmax(-1) for _ in range(4)]
    rolled = rollout(weights)
    for b in range(3):
        by_hand = np.eye(5)
        for layer in weights:
            mixed = 0.5 * layer[b].mean(0).numpy() + 0.5 * np.eye(5)
            by_hand = mixed @ by_hand
        np.testing.assert_allclose(rolled[b], by_hand, atol=1e-6)
    torch.testing.assert_close(rolled.sum(-1), torch.ones(3, 5))


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_rollout_of_uniform_attention(layers):
    """((1 + U) / 2) ^ L = 2^-L + (1 - 2^-L) U, as U is a projection."""
    rolled = rollout([torch.full((1, 2, 6, 6), 1 / 6)] * layers)[0]
    wanted = 0.5**layers * torch.eye(6) + (1 - 0.5**layers) / 6
    torch.testing.assert_close(rolled, wanted)


def test_rollout_to_the_start_token_only():
    """Causal attention with all on the start token: what stays on the end token is 2^-L."""
    sink = torch.zeros(1, 1, 4, 4)
    sink[..., 0] = 1
    rolled = rollout([sink] * 3)[0]
    torch.testing.assert_close(rolled[3], torch.tensor([1 - 0.5**3, 0, 0, 0.5**3]))


def test_rollout_maps(trained, drawn):
    (tokens,) = token_maps(trained, drawn.images[0], TEXT, "rollout")
    (patches,) = patch_maps(trained, drawn.images[0], TEXT, "rollout")
    rolled = rollout(torch.from_numpy(attention(trained, TEXT).weights).unsqueeze(1))[0]
    np.testing.assert_allclose(tokens.scores, rolled[8, 1:8], atol=1e-6)
    assert patches.scores.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_batches_agree_with_one_by_one_and_pads_do_not_matter(trained, drawn, method):
    clip = stretch(trained)
    texts = [drawn.long[0], TEXT, drawn.long[2]]
    images = drawn.images[:3]
    for maps, registry in ((token_maps, TOKEN_METHODS), (patch_maps, PATCH_METHODS)):
        assert method in registry
        together = maps(clip, images, texts, method)
        for i, one in enumerate(together):
            (alone,) = maps(clip, images[i], texts[i], method)
            np.testing.assert_allclose(one.scores, alone.scores, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "both ways"])
def test_other_text_towers(towers, drawn, name):
    """Padding takes nothing in BERT; a tower that reads it gives it its share."""
    clip = towers.text_clip(name)
    for method in ("attention", "rollout"):
        short, _ = token_maps(clip, drawn.images[:2], [TEXT, drawn.short[0]], method)
        assert short.scores.shape == (7,)
        assert 0 < short.scores.sum() < 1


@pytest.mark.parametrize("mask", [True, False])
def test_corner_tokens_stand_behind_and_move_no_label(trained, towers, drawn, mask):
    """With the mask they are not run; without it they are seen and named."""
    kind = "corner" if mask else "register"
    bert = copy.deepcopy(towers.text_clip("bert"))
    give_corners(bert.model.text, CornerTokens(2, mask, kind))
    for clip, pooled in ((add_corner_tokens(trained, 2, mask, kind), "[end]"), (bert, "[start]")):
        found = attention(clip, TEXT)
        assert found.labels[8] == "[end]"
        assert found.labels[9:] == (() if mask else ("[register 1]", "[register 2]"))
        assert found.labels[found.pooled] == pooled
        (scores,) = token_maps(clip, drawn.images[0], TEXT, "rollout")
        assert scores.tokens == ["a", "red", "boat", "on", "a", "lake", "."]
