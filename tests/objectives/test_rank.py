"""The rank meter against numbers that can be known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.errors import LabError
from longclip_lab.objectives import primary_components, rank_meter


def features(batch: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed))


def test_official_batch_of_32_is_a_no_op():
    meter = rank_meter(features(32, 512), k=32)
    assert (meter.rank, meter.is_identity, meter.variance_kept) == (31, True, 1.0)
    assert "does nothing" in meter.verdict


def test_even_spectrum_has_the_rank_as_effective_rank():
    # The corners of a cross polytope: centred, of length 1, the same variance everywhere.
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    meter = rank_meter(corners, k=3)
    assert meter.rank == 6
    assert meter.effective_rank == pytest.approx(6.0)
    assert meter.variance_kept == pytest.approx(0.5)
    assert meter.spectrum == pytest.approx([1 / 6] * 6)
    assert "at work" in meter.verdict
    table = meter.table()
    assert table["kept"].sum() == 3
    assert table["cumulative"].iloc[-1] == pytest.approx(1.0)


def test_a_thin_tail_is_called_next_to_nothing():
    turned = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    meter = rank_meter(features(200, 3) @ turned + 0.01 * features(200, 64, 2), k=3)
    assert 0.99 < meter.variance_kept < 1
    assert "next to nothing" in meter.verdict


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(2, 30), dim=st.integers(2, 30), k=st.integers(1, 30))
def test_agrees_with_the_components(batch, dim, k):
    batch_BD = torch.nn.functional.normalize(features(batch, dim, batch))
    meter = rank_meter(batch_BD, k)
    coarse_BD = primary_components(batch_BD, k)
    kept = coarse_BD.var(dim=0).sum() / batch_BD.var(dim=0).sum()
    assert meter.variance_kept == pytest.approx(kept.item(), rel=1e-4)
    assert meter.is_identity == torch.equal(coarse_BD, batch_BD)
    assert sum(meter.spectrum) == pytest.approx(1.0)
    assert 1 <= meter.effective_rank <= meter.rank + 1e-6


def test_duplicates_and_identical_images():
    twice = features(10, 64).repeat(2, 1)
    assert rank_meter(twice, k=12).rank == 9
    same = rank_meter(features(1, 64).expand(5, 64), k=1)
    assert (same.rank, same.is_identity, same.effective_rank) == (0, True, 0.0)
    assert sum(same.spectrum) == 0.0


def test_bad_input():
    with pytest.raises(LabError, match="k: expected"):
        rank_meter(features(4, 4), k=0)
    with pytest.raises(LabError, match="1 NaN"):
        rank_meter(torch.tensor([[float("nan"), 1.0]]), k=1)


def test_the_meter_draws_itself():
    meter = rank_meter(features(64, 16), k=4)
    chart = meter.plot()
    assert "k=4" in chart.layout.title.text
    assert len(chart.data[0].y) == meter.rank
