"""Relevance against a literal implementation of the paper's equations, on every make of tower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longclip_lab.attribution import patch_maps, record, relevance, token_maps
from longclip_lab.attribution.gradients import averaging_step, explain
from longclip_lab.attribution.maps import as_pairs
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, stretch

TEXT = "a red boat on a lake."


def literal(clip: Clip, image: np.ndarray, text: str, tower: str, start: int = 0) -> np.ndarray:
    """R of equations 5 and 6, one pair, one layer and one backward pass at a time: [T, T]."""
    pairs = as_pairs(clip, image, text)
    with record(clip, tower, gradients=True) as recording:
        text_feature = clip.encode_text(pairs.ids_BT)[0]
        image_feature = clip.encode_image(pairs.pixels_B3HW)[0]
        cosine = (text_feature @ image_feature) / (text_feature.norm() * image_feature.norm())
    R = torch.eye(recording.weights[0].shape[-1])
    for A in recording.weights[start:]:
        (gradient,) = torch.autograd.grad(cosine, A, retain_graph=True)
        heads = [torch.relu(gradient[0, h] * A[0, h]) for h in range(A.shape[1])]
        A_bar = sum(heads) / len(heads)
        R = R + A_bar @ R
    return R.detach().numpy()


@pytest.mark.parametrize("start", [0, 1, -1])
def test_end_token(trained, drawn, start):
    (found,) = relevance(trained, drawn.images[0], TEXT, start=start)
    R = literal(trained, drawn.images[0], TEXT, "text", start)
    assert found.tokens.tokens == ["a", "red", "boat", "on", "a", "lake", "."]
    np.testing.assert_allclose(found.tokens.scores, R[8, 1:8], rtol=1e-4, atol=1e-8)
    assert found.tokens.scores.max() > 0


def test_class_token_of_bert(towers, drawn):
    clip = towers.text_clip("bert")
    texts = [TEXT, drawn.long[1]]
    found, _ = relevance(clip, drawn.images[:2], texts)
    R = literal(clip, drawn.images[0], TEXT, "text")
    np.testing.assert_allclose(found.tokens.scores, R[0, 1:8], rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(("name", "prefix"), [("class token", 1), ("timm class token", 3)])
def test_class_token_of_pictures(towers, drawn, name, prefix):
    clip = towers.image_clip(name)
    (found,) = relevance(clip, drawn.images[0], TEXT)
    R = literal(clip, drawn.images[0], TEXT, "image")
    wanted = R[0, prefix:].reshape(3, 3)
    np.testing.assert_allclose(found.patches.scores, wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "prefix", "module"),
    [
        ("average, norm before", 1, "ln_post"),
        ("average, norm after", 1, "transformer"),
        ("timm average, norm before", 1, "trunk.norm"),
        ("timm average, norm after", 0, "trunk.norm"),
    ],
)
def test_average_of_patches(towers, drawn, name, prefix, module):
    """The mean counts as a last attention with weights 1/n, differentiated like the others."""
    clip = towers.image_clip(name)
    (found,) = relevance(clip, drawn.images[0], TEXT)
    count = 9 + prefix
    shares = torch.ones(1, count, 1, requires_grad=True)  # shares / n are the mean's weights
    output = clip.model.visual.get_submodule(module)
    handle = output.register_forward_hook(lambda m, i, out: out * shares)
    pairs = as_pairs(clip, drawn.images[0], TEXT)
    cosine = F.cosine_similarity(
        clip.encode_image(pairs.pixels_B3HW), clip.encode_text(pairs.ids_BT)
    )
    handle.remove()
    (gradient,) = torch.autograd.grad(cosine.sum(), shares)
    row = torch.relu(gradient).flatten().numpy()
    R = literal(clip, drawn.images[0], TEXT, "image")
    wanted = (row @ R)[prefix:].reshape(3, 3)
    np.testing.assert_allclose(found.patches.scores, wanted, rtol=1e-4, atol=1e-7)
    assert found.patches.scores.max() > 0


def test_attention_pool(towers, drawn):
    clip = towers.image_clip("timm attention pool")
    (found,) = relevance(clip, drawn.images[0], TEXT)
    pairs = as_pairs(clip, drawn.images[0], TEXT)
    with record(clip, "image", gradients=True) as recording:
        cosine = F.cosine_similarity(
            clip.encode_image(pairs.pixels_B3HW), clip.encode_text(pairs.ids_BT)
        )
    assert recording.pool.shape == (1, 2, 1, 9)
    (gradient,) = torch.autograd.grad(cosine.sum(), recording.pool)
    row = torch.relu(gradient * recording.pool).mean(1)[0, 0].detach().numpy()
    wanted = (row @ literal(clip, drawn.images[0], TEXT, "image")).reshape(3, 3)
    np.testing.assert_allclose(found.patches.scores, wanted, rtol=1e-4, atol=1e-8)


def test_the_mean_as_attention():
    """x dS/dx is a dS/da for S of s = sum_k a_k x_k."""
    torch.manual_seed(0)
    states = torch.randn(2, 5, 3, requires_grad=True)
    weights = torch.full((2, 5), 1 / 5, requires_grad=True)
    read = torch.einsum("bt,btw->bw", weights, states)
    (gradient,) = torch.autograd.grad(read.sin().sum(), weights)
    wanted = (weights * gradient).clamp(min=0).detach()
    torch.testing.assert_close(averaging_step(states.mean(1).sin().sum(), states), wanted)


@pytest.mark.parametrize("batch_size", [16, 2])
def test_batches_agree_with_one_by_one(trained, drawn, batch_size):
    clip = stretch(trained)
    texts = [drawn.long[0], TEXT, drawn.long[2], drawn.short[3], drawn.long[4]]
    together = relevance(clip, drawn.images[:5], texts, batch_size=batch_size)
    for i, found in enumerate(together):
        (alone,) = relevance(clip, drawn.images[i], texts[i])
        assert found.similarity == pytest.approx(alone.similarity, abs=1e-5)
        np.testing.assert_allclose(found.tokens.scores, alone.tokens.scores, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(found.patches.scores, alone.patches.scores, rtol=1e-3, atol=1e-7)


def test_methods_are_its_two_sides(trained, drawn):
    (found,) = relevance(trained, drawn.images[0], TEXT, start=-1)
    (patches,) = patch_maps(trained, drawn.images[0], TEXT, "relevance", start=-1)
    (tokens,) = token_maps(trained, drawn.images[0], TEXT, "relevance", start=-1)
    np.testing.assert_allclose(patches.scores, found.patches.scores, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(tokens.scores, found.tokens.scores, rtol=1e-4, atol=1e-7)
    assert found.patches.text == found.tokens.text == TEXT


def test_works_without_gradients_outside_and_leaves_no_trace(trained, drawn):
    pairs = as_pairs(trained, drawn.images[0], TEXT)
    trained.model.train()
    with torch.no_grad():
        (quiet,) = explain(pairs)
    assert trained.model.training
    trained.model.eval()
    (found,) = explain(pairs)
    np.testing.assert_array_equal(quiet.patches.scores, found.patches.scores)
    for parameter in trained.model.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
    for module in trained.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_wrong_start(trained, drawn):
    with pytest.raises(LabError, match="a start from -3 to 2"):
        relevance(trained, drawn.images[0], TEXT, start=3)


def test_unknown_pools_are_refused(towers, drawn):
    for name in ("timm maximum", "attention pool"):
        with pytest.raises(LabError, match="pools its patches by"):
            relevance(towers.image_clip(name), drawn.images[0], TEXT)


def test_finds_what_is_named(trained, drawn):
    """On the bundled model the peak falls into the large things' boxes (about 9 in 10 times)."""
    asked = [
        (i, f"a picture of a {thing.colour} {thing.kind}.", thing.box())
        for i, scene in enumerate(drawn.scenes)
        for thing in scene.things
        if thing.size != "small"
    ]
    rows, texts, boxes = zip(*asked, strict=True)
    peaks = [m.peak() for m in patch_maps(trained, drawn.images[list(rows)], texts, "relevance")]
    hits = [
        x0 <= x < x1 and y0 <= y < y1 for (x, y), (x0, y0, x1, y1) in zip(peaks, boxes, strict=True)
    ]
    assert np.mean(hits) > 0.8
