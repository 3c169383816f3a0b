"""Pulls and pushes against the derivatives on paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.errors import LabError
from longclip_lab.objectives import LossConfig, pulls

QUICK = settings(deadline=None, max_examples=25)
sizes, scales, seeds = st.integers(2, 6), st.floats(1, 30), st.integers(0, 100)


def cosines(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.6 / size**0.5) * torch.rand(size, size, generator=generator, dtype=torch.float64)


def softmax_pulls(logits_BB: torch.Tensor, scale: float) -> torch.Tensor:
    """Of the mean of both cross-entropies."""
    own = torch.eye(len(logits_BB), dtype=logits_BB.dtype)
    return scale / len(own) * (own - (logits_BB.softmax(0) + logits_BB.softmax(1)) / 2)


@QUICK
@given(size=sizes, scale=scales, seed=seeds)
def test_softmax(size, scale, seed):
    table = cosines(size, seed)
    for name in ("clip", "lit", "laclip", "register"):
        torch.testing.assert_close(pulls(name, table, scale), softmax_pulls(scale * table, scale))


@QUICK
@given(size=sizes, scale=scales, seed=seeds, bias=st.floats(-12, 2))
def test_sigmoid(size, scale, seed, bias):
    table = cosines(size, seed)
    own = torch.eye(size, dtype=table.dtype)
    expected = scale / size * (own - torch.sigmoid(scale * table + bias))
    torch.testing.assert_close(pulls("siglip", table, scale, bias), expected)


@QUICK
@given(size=sizes, scale=scales, seed=seeds, margin=st.floats(0, 2))
def test_hard_negatives(size, scale, seed, margin):
    table = cosines(size, seed)
    alike = 0.95 * torch.eye(size, dtype=table.dtype) + 0.05 + 0 * table
    shifted = scale * (table + margin * alike.clone().fill_diagonal_(0))
    # the loss reads both directions off one table and its transpose
    found = pulls("hn-clip", table, scale, text_cosines_BB=alike, config=LossConfig(margin=margin))
    torch.testing.assert_close(found, softmax_pulls(shifted, scale))


def test_what_has_no_such_pull_is_refused():
    table = cosines(3, 0)
    with pytest.raises(LabError, match="one feature"):
        pulls("filip", table, 10.0)
    with pytest.raises(LabError, match="clip"):
        pulls("clipp", table, 10.0)
    with pytest.raises(LabError, match="unit vectors"):
        pulls("clip", torch.full((3, 3), 0.9), 10.0)
    with pytest.raises(LabError, match="as many"):
        pulls("clip", table[:2], 10.0)
