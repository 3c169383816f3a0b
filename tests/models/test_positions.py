"""Stretched tables of positions, against the official code's numbers and by their properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longclip_lab.errors import LabError
from longclip_lab.models.kps import new_positions, stretch_positions, stretched_length


def table(length: int, width: int = 6) -> torch.Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(length))


def test_equals_the_official_code(golden):
    expected = load_file(golden / "kps.safetensors")
    stretched = stretch_positions(expected["positional_embedding"], keep=20, ratio=4)
    torch.testing.assert_close(stretched, expected["stretched"], rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 40),
    keep_share=st.floats(0, 0.99),
    ratio=st.integers(1, 6),
)
def test_old_positions_stay_where_they_are_reached_exactly(length, keep_share, ratio):
    keep = int(keep_share * length)
    old = table(length)
    new = stretch_positions(old, keep, ratio)
    assert len(new) == keep + (length - keep) * ratio
    assert torch.equal(new[:keep], old[:keep])
    torch.testing.assert_close(new[keep::ratio], old[keep:])


@settings(max_examples=40, deadline=None)
@given(length=st.integers(2, 30), ratio=st.floats(1, 5), extra=st.integers(0, 20))
def test_a_straight_line_stays_straight(length, ratio, extra):
    """Interpolation and the extrapolated end are both linear, so a line is kept, also behind T."""
    line = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    new_length = stretched_length(length, 1, ratio) + extra
    new = new_positions(line, "kps", keep=1, ratio=ratio, length=new_length).squeeze(1)
    expected = 1 + torch.arange(new_length - 1, dtype=torch.float64) / ratio
    torch.testing.assert_close(new[1:], expected)


def test_ratio_one_changes_nothing():
    assert torch.equal(stretch_positions(table(9), keep=3, ratio=1), table(9))


def test_half_precision_is_computed_in_float32():
    old = table(30).half()
    expected = stretch_positions(old.float(), keep=4, ratio=3).half()
    assert torch.equal(stretch_positions(old, keep=4, ratio=3), expected)


def test_length_cuts_or_extends():
    full = stretch_positions(table(77))
    assert torch.equal(new_positions(table(77), "kps", length=200), full[:200])
    extended = new_positions(table(77), "kps", length=260)
    assert torch.equal(extended[:248], full)
    steps = extended[245:].diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=1e-5)


def test_rivals_have_the_same_length():
    old = table(77)
    tables = {name: new_positions(old, name) for name in ("kps", "linear", "random")}
    assert {len(new) for new in tables.values()} == {248}
    assert torch.equal(tables["random"][:77], old)
    torch.testing.assert_close(tables["linear"][0], old[0])
    assert not torch.allclose(tables["linear"][19], old[19])
    assert torch.equal(new_positions(old, "none"), old)


def test_random_is_seeded_and_of_the_old_scale():
    old = 3 + 2 * table(77, 512)
    one, same, other = (new_positions(old, "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one[77:], other[77:])
    assert one[77:].mean().item() == pytest.approx(3, abs=0.1)
    assert one[77:].std().item() == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 77}, "keep must be a whole number from 0 to 76"),
        ({"keep": -1}, "keep must be"),
        ({"keep": 2.5}, "keep must be"),
        ({"ratio": 0.5}, "ratio must be at least 1"),
        ({"ratio": float("nan")}, "ratio must be at least 1"),
        ({"length": 20}, "must be larger than keep"),
        ({"method": "kpss"}, "Did you mean kps"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(LabError, match=message):
        new_positions(table(77), **arguments)


def test_one_position_cannot_be_stretched():
    with pytest.raises(LabError, match="at least two positions"):
        stretch_positions(table(1), keep=0)
