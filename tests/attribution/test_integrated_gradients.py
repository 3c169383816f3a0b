"""Integrated gradients against the completeness axiom and an integral by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longclip_lab.attribution import token_maps
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import encode_images
from longclip_lab.models.anatomy import text_tower

IG = "integrated-gradients"
TOWERS = ["causal", "both ways", "bert", "causal registers", "bert registers"]
TEXTS = ["a red boat", "a large striped balloon on the left of a house", "a blue house"]


def by_hand(clip, image, text, steps: int = 60) -> np.ndarray:
    """The path integral by the midpoint rule, one point at a time, on the text alone."""
    tower = text_tower(clip.model)
    embedding = getattr(tower, "token_embedding", None)
    embedding = embedding or tower.transformer.get_input_embeddings()
    batch = clip.tokenize(text)
    ids_BT, length = batch.ids_BT, int(batch.lengths_B)
    image_BD = encode_images(clip, image[None])
    put_in, sizes = [], []

    def replace(_module, _inputs, output):
        sizes.append(output.shape[1])
        return put_in[0][:, : output.shape[1]] if put_in else None

    handle = embedding.register_forward_hook(replace)
    full_BTW = embedding(ids_BT).detach()
    empty_BT = ids_BT.clone()
    empty_BT[:, 1 : length - 1] = clip.tokenizer.pad_id
    way_BTW = full_BTW - embedding(empty_BT).detach()
    total_BTW = torch.zeros_like(way_BTW)
    for step in range(steps):
        point = (full_BTW - (1 - (step + 0.5) / steps) * way_BTW).requires_grad_()
        put_in[:] = [point]
        cosine = F.cosine_similarity(clip.encode_text(ids_BT), image_BD).sum()
        total_BTW += torch.autograd.grad(cosine, point)[0] / steps
    handle.remove()
    return (total_BTW * way_BTW).sum(-1)[0, 1 : length - 1].numpy()


@pytest.mark.parametrize("name", TOWERS)
def test_equals_the_integral(name, towers, drawn):
    clip = towers.text_clip(name)
    maps = token_maps(clip, drawn.images[:3], TEXTS, method=IG, n_steps=50)
    for found, image, text in zip(maps, drawn.images, TEXTS, strict=False):
        expected = by_hand(clip, image, text)
        np.testing.assert_allclose(found.scores, expected, atol=2e-4)
        assert found.tokens == text.split()


@pytest.mark.parametrize("name", TOWERS)
def test_scores_sum_to_the_difference(name, towers, drawn):
    clip = towers.text_clip(name)
    for found in token_maps(clip, drawn.images[:3], TEXTS, method=IG, n_steps=64):
        total = found.details["difference"] + found.details["convergence_delta"]
        assert found.scores.sum() == pytest.approx(total, abs=1e-6)
        assert abs(found.details["convergence_delta"]) < 1e-3


def test_difference_is_to_the_text_of_padding(trained, drawn):
    (found,) = token_maps(trained, drawn.images[0], "a red boat", method=IG)
    ids_BT = trained.tokenize("a red boat").ids_BT[:, :5]
    empty_BT = ids_BT.clone()
    empty_BT[:, 1:4] = trained.tokenizer.pad_id
    with torch.no_grad():
        image_BD = encode_images(trained, drawn.images[:1])
        full, empty = F.cosine_similarity(
            trained.encode_text(torch.cat([ids_BT, empty_BT])), image_BD
        ).tolist()
    assert found.details["difference"] == pytest.approx(full - empty, abs=1e-6)


def test_batches_do_not_matter(trained, drawn):
    """Nor do the lengths of the other texts."""
    texts = drawn.long[:3] + drawn.short[:3]
    images = np.concatenate([drawn.images[:3]] * 2)
    together = token_maps(trained, images, texts, method=IG, n_steps=24, internal_batch_size=5)
    for found, image, text in zip(together, images, texts, strict=True):
        (alone,) = token_maps(trained, image, text, method=IG, n_steps=24, internal_batch_size=None)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)


def test_warns_of_too_few_steps(trained, drawn):
    with pytest.warns(LabWarning, match="did not converge for .* of 12 pairs"):
        token_maps(trained, drawn.images, drawn.short, method=IG, n_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_maps(trained, drawn.images, drawn.short, method=IG)


def test_leaves_the_model_alone(trained, drawn):
    with torch.no_grad():
        token_maps(trained, drawn.images[:1], drawn.short[:1], method=IG, n_steps=4)
    assert not any(module._forward_hooks for module in trained.model.modules())
    assert all(parameter.grad is None for parameter in trained.model.parameters())


def test_empty_text_and_bad_steps(trained, drawn):
    (found,) = token_maps(trained, drawn.images[0], "", method=IG)
    assert found.scores.shape == (0,)
    with pytest.raises(LabError, match="n_steps must be a whole number from 1"):
        token_maps(trained, drawn.images[0], "a boat", method=IG, n_steps=0)
