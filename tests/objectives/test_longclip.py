"""Long-CLIP's loss, and a training step of the official code. Shapes: B batch, D embedding."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from safetensors.torch import load_file

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import load
from longclip_lab.objectives import contrastive_loss, longclip_loss, primary_components
from longclip_lab.objectives.contrastive import symmetric_cross_entropy

# --- The contrastive loss and Long-CLIP's loss. Shapes: B batch, D embedding ---

GOLDEN = Path(__file__).parents[1] / "golden"


def features(batch: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(1, 12), dim=st.integers(2, 12), scale=st.floats(0.1, 100))
def test_contrastive_loss_equals_open_clip(batch, dim, scale):
    image_BD, text_BD = features(batch, dim, 0), features(batch, dim, 1)
    expected = ClipLoss()(F.normalize(image_BD), F.normalize(text_BD), scale)
    torch.testing.assert_close(contrastive_loss(image_BD, text_BD, scale), expected)


def test_label_smoothing_spreads_a_tenth():
    logits = F.normalize(features(5, 4, 0)) @ F.normalize(features(5, 4, 1)).T
    both = torch.stack([logits.log_softmax(1), logits.T.log_softmax(1)])
    target = 0.9 * torch.eye(5) + 0.1 / 5
    expected = -(target * both).sum(2).mean()
    loss = contrastive_loss(features(5, 4, 0), features(5, 4, 1), 1.0, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_match_official_matches_the_official_losses_and_scale_gradient():
    golden = load_file(GOLDEN / "objectives.safetensors")
    inputs = [
        golden[f"loss.{n}"] for n in ("image_features", "text_features_long", "text_features_short")
    ]
    # The official code starts at 4.6052, not at ln 100.
    log_scale = torch.tensor(4.6052, requires_grad=True)
    parts = longclip_loss(*inputs, log_scale.exp(), match_official=True)
    torch.testing.assert_close(parts.long, golden["loss.loss_long"], rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.short, golden["loss.loss_short"], rtol=1e-5, atol=0)
    parts.total.backward()
    torch.testing.assert_close(log_scale.grad, golden["loss.grad_logit_scale"], rtol=1e-5, atol=0)
    renormalised = longclip_loss(*inputs, math.exp(4.6052))
    assert abs(renormalised.short - golden["loss.loss_short"]) > 5e-4


def test_default_normalises_the_coarse_features():
    image_BD, long_BD, short_BD = (features(20, 8, seed) for seed in range(3))
    parts = longclip_loss(image_BD, long_BD, short_BD, 10.0, k=3, short_weight=0.5)
    coarse_BD = primary_components(F.normalize(image_BD), 3)
    torch.testing.assert_close(parts.long, contrastive_loss(image_BD, long_BD, 10.0, 0.1))
    torch.testing.assert_close(parts.short, contrastive_loss(coarse_BD, short_BD, 10.0, 0.1))
    torch.testing.assert_close(parts.total, parts.long + 0.5 * parts.short)
    variance = F.normalize(image_BD).var(dim=0).sum()
    torch.testing.assert_close(parts.variance_kept, coarse_BD.var(dim=0).sum() / variance)


def test_match_official_and_exact_gradients_agree_without_renormalisation():
    """The two ways differ in normalisation and in numerics only."""
    image_BD, long_BD, short_BD = (features(30, 8, seed).double() for seed in range(3))
    official_BD = image_BD.clone().requires_grad_()
    longclip_loss(official_BD, long_BD, short_BD, 5.0, k=3, match_official=True).short.backward()
    exact_BD = image_BD.clone().requires_grad_()
    coarse_BD = primary_components(F.normalize(exact_BD), 3)
    logits = 5.0 * coarse_BD @ F.normalize(short_BD).T
    target = torch.arange(30)
    loss = F.cross_entropy(logits, target, label_smoothing=0.1)
    ((loss + F.cross_entropy(logits.T, target, label_smoothing=0.1)) / 2).backward()
    torch.testing.assert_close(official_BD.grad, exact_BD.grad)


@pytest.mark.parametrize("match_official", [False, True])
def test_a_batch_of_k_plus_one_warns_and_equals_mixing(match_official):
    batch = [features(33, 64, seed) for seed in range(3)]
    with pytest.warns(LabWarning, match=r"k=32 does nothing .* of 33"):
        parts = longclip_loss(*batch, 10.0, k=32, match_official=match_official)
    mixed = longclip_loss(*batch, 10.0, objective="mixed")
    torch.testing.assert_close(parts.total, mixed.total)
    assert parts.variance_kept.item() == pytest.approx(1.0, abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = longclip_loss(*batch, 10.0, k=31, match_official=match_official).variance_kept
    assert kept < 1


def test_long_only_needs_no_short_captions():
    image_BD, long_BD = features(6, 8, 0), features(6, 8, 1)
    parts = longclip_loss(image_BD, long_BD, None, 10.0, objective="long")
    torch.testing.assert_close(parts.total, contrastive_loss(image_BD, long_BD, 10.0, 0.1))
    assert (parts.short, parts.variance_kept) == (0, 1)


def test_identical_images_are_no_accident():
    same_BD = features(1, 8, 0).expand(10, 8)
    parts = longclip_loss(same_BD, features(10, 8, 1), features(10, 8, 2), 10.0, k=2)
    assert parts.total.isfinite()
    assert parts.variance_kept == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "k: expected"),
        ({"objective": "pmc"}, "No objective 'pmc'. Known names: longclip"),
        ({"short_BD": None}, "needs short caption features"),
        ({"short_BD": torch.randn(5, 4)}, "as many rows and columns"),
        ({"long_BD": torch.randn(6)}, "non-empty matrix"),
        ({"image_BD": torch.full((6, 4), math.nan)}, "image_features: .* 24 NaN"),
        ({"short_BD": torch.full((6, 4), math.inf)}, "short_features: .* 24 NaN or infinite"),
    ],
)
def test_bad_input(change, words):
    call = {
        "image_BD": torch.randn(6, 4),
        "long_BD": torch.randn(6, 4),
        "short_BD": torch.randn(6, 4),
        "logit_scale": 10.0,
        "k": 2,
    } | change
    with pytest.raises(LabError, match=words):
        longclip_loss(**call)


def test_contrastive_loss_refuses_nan():
    with pytest.raises(LabError, match=r"text_features: .* 1 NaN"):
        contrastive_loss(torch.eye(2), torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), 1.0)


# --- A whole training step of the official code: its gradients, through both towers and the PCA ---


def match_official(image_BD, long_BD, short_BD, scale):
    return longclip_loss(image_BD, long_BD, short_BD, scale, match_official=True).total


def exact(image_BD, long_BD, short_BD, scale):
    """The same loss with the projector's own gradient in place of the SVD's."""
    image_BD = F.normalize(image_BD)
    coarse_BD = primary_components(image_BD, 32)
    long = symmetric_cross_entropy(image_BD, F.normalize(long_BD), scale, 0.1)
    return long + symmetric_cross_entropy(coarse_BD, F.normalize(short_BD), scale, 0.1)


@pytest.mark.parametrize("loss", [match_official, exact])
def test_gradients_of_the_official_step(loss):
    golden = load_file(GOLDEN / "longclip-tiny-gradients.safetensors")
    clip = load(GOLDEN / "longclip-tiny.pt")
    model = clip.model
    long_BD, short_BD = (
        clip.encode_text(golden[f"tokens_{length}"].long()) for length in ("long", "short")
    )
    image_BD = clip.encode_image(golden["image"])
    loss(image_BD, long_BD, short_BD, model.logit_scale.exp()).backward()
    gradients = {
        "visual.proj": model.visual.proj.grad,
        "text_projection": model.text_projection.grad,
        "positional_embedding": model.positional_embedding.grad,
    }
    for name, ours in gradients.items():
        expected = golden[f"grad_{name}"]
        assert torch.linalg.norm(ours - expected) < 1e-5 * torch.linalg.norm(expected), name
