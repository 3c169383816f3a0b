"""LoTLIP's loss against its equations. Shapes: B batch, C CLS and corners, D embedding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.errors import LabError
from longclip_lab.objectives import contrastive_loss, lotlip_loss, same_text


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch(size: int, corners: int, dim: int = 5) -> list[torch.Tensor]:
    return [draw(size, dim, seed=0), draw(size, 1 + corners, dim, seed=1), draw(size, dim, seed=2)]


def equations(image_BD, long_BCD, short_BD, inverse_temperature: float) -> float:
    """Equations 1 to 6 as they stand, one term at a time."""

    def term(anchor_D, right: int, candidates_BD) -> float:
        exponentials = [
            math.exp(inverse_temperature * float(F.cosine_similarity(anchor_D, other_D, dim=0)))
            for other_D in candidates_BD
        ]
        return -math.log(exponentials[right] / sum(exponentials))

    total = 0.0
    for i in range(len(image_BD)):
        total += term(image_BD[i], i, short_BD) + term(short_BD[i], i, image_BD)
        for feature in range(long_BCD.shape[1]):
            total += term(image_BD[i], i, long_BCD[:, feature])
            total += term(long_BCD[i, feature], i, image_BD)
    return total


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 5), corners=st.integers(0, 3), scale=st.floats(0.5, 20))
def test_the_papers_sum(size, corners, scale):
    inputs = batch(size, corners)
    total = lotlip_loss(*inputs, scale).total.item()
    assert 2 * size * total == pytest.approx(equations(*inputs, scale))


@settings(deadline=None, max_examples=20)
@given(size=st.integers(2, 6), corners=st.integers(0, 4), smoothing=st.sampled_from([0.0, 0.1]))
def test_the_codes_mean_is_the_mean_over_text_features(size, corners, smoothing):
    image_BD, long_BCD, short_BD = batch(size, corners)
    each = [contrastive_loss(image_BD, text_BD, 7.0, smoothing) for text_BD in long_BCD.unbind(1)]
    short = contrastive_loss(image_BD, short_BD, 7.0, smoothing)
    parts = lotlip_loss(image_BD, long_BCD, short_BD, 7.0, "mean", label_smoothing=smoothing)
    torch.testing.assert_close(parts.total, torch.stack([*each, short]).mean())
    torch.testing.assert_close(parts.each_C, torch.stack(each))
    torch.testing.assert_close(parts.long + parts.short, parts.total)


def test_gradients():
    inputs = [part.requires_grad_() for part in batch(4, 2)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *args: lotlip_loss(*args).total, (*inputs, scale), fast_mode=True
    )


def test_as_much_long_loss_on_cls_is_what_copies_of_cls_as_corners_give():
    image_BD, long_BCD, short_BD = batch(6, 0)
    copies = lotlip_loss(image_BD, long_BCD.expand(-1, 3, -1), short_BD, 5.0)
    weighted = lotlip_loss(image_BD, long_BCD, short_BD, 5.0, long_weight=3)
    torch.testing.assert_close(copies.total, weighted.total)


def test_weights_and_a_missing_short_caption():
    inputs = batch(6, 2)
    plain, light = lotlip_loss(*inputs, 5.0), lotlip_loss(*inputs, 5.0, short_weight=0.25)
    torch.testing.assert_close(light.total, plain.long + 0.25 * plain.short)
    without = lotlip_loss(inputs[0], inputs[1], None, 5.0, "mean")
    torch.testing.assert_close(without.total, plain.each_C.mean())
    assert (without.short, without.variance_kept) == (0, 1)


def test_twins_are_left_out_of_their_own_part():
    inputs = batch(5, 1)
    same_BB = same_text(["sky", "sea", "sky", "sea", "a cat"])
    plain = lotlip_loss(*inputs, 5.0)
    masked = lotlip_loss(*inputs, 5.0, same_short_GG=same_BB)
    expected = contrastive_loss(inputs[0], inputs[2], 5.0, same_GG=same_BB)
    torch.testing.assert_close(masked.short, expected)
    torch.testing.assert_close(masked.long, plain.long)
    masked = lotlip_loss(*inputs, 5.0, same_long_GG=same_BB)
    assert masked.long < plain.long
    torch.testing.assert_close(masked.short, plain.short)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reduction": "maen"}, "No reduction 'maen'. Did you mean mean?"),
        ({"long_BCD": torch.randn(6, 4)}, r"without corners add the axis"),
        ({"long_BCD": torch.randn(6, 0, 4)}, r"CLS and corners"),
        ({"long_BCD": torch.randn(5, 3, 4)}, "as many rows and columns"),
        ({"short_BD": torch.randn(6, 5)}, "as many rows and columns"),
        ({"long_BCD": torch.full((6, 3, 4), math.nan)}, "long_features: .* 72 NaN"),
        ({"short_BD": torch.full((6, 4), math.inf)}, "short_features: .* 24 NaN or infinite"),
    ],
)
def test_bad_input(change, words):
    call = {
        "image_BD": torch.randn(6, 4),
        "long_BCD": torch.randn(6, 3, 4),
        "short_BD": torch.randn(6, 4),
        "logit_scale": 10.0,
    } | change
    with pytest.raises(LabError, match=words):
        lotlip_loss(**call)
