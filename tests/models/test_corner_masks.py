"""LoTLIP's attention mask, element by element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longclip_lab.errors import LabError
from longclip_lab.models import causal_corner_mask, corner_attention_mask

CLS, CORNER, TEXT = "cls", "corner", "text"


def formula(q: int, k: int, roles: list[str]) -> bool:
    """A(q, k) of LoTLIP's section 4.3, as it is printed."""
    pooled = {CLS, CORNER}
    blocked = roles[k] == CORNER or (roles[q] in pooled and roles[k] in pooled)
    return not (blocked and q != k)


@settings(deadline=None)
@given(
    num_corner=st.integers(0, 4),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_every_element_follows_the_formula(num_corner, lengths):
    size = 1 + num_corner + max(lengths)
    tokens_BT = torch.zeros(len(lengths), size, dtype=torch.long)
    for row_T, length in zip(tokens_BT, lengths, strict=True):
        row_T[: 1 + num_corner + length] = 1
    roles = [CLS] + [CORNER] * num_corner + [TEXT] * max(lengths)
    allowed_BTT = corner_attention_mask(tokens_BT, num_corner)
    assert allowed_BTT.dtype == torch.bool
    for b in range(len(lengths)):
        for q in range(size):
            for k in range(size):
                expected = formula(q, k, roles) and bool(tokens_BT[b, k])
                assert bool(allowed_BTT[b, q, k]) is expected, (b, q, k)


def test_matches_the_released_code(golden):
    """In the golden mask T counts [CLS], the corners and the text, as here."""
    expected = load_file(golden / "lotlip-text-tiny-io.safetensors")
    allowed_BTT = corner_attention_mask(expected["input_ids"] != 0, num_corner=2)
    assert torch.equal(allowed_BTT.long(), expected["attention_mask"])


@settings(deadline=None)
@given(
    num_corner=st.integers(0, 3),
    ends=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    mask=st.booleans(),
)
def test_causal_towers_combine_the_formula_with_the_order_of_reading(num_corner, ends, mask):
    """Read as text, corners, end; the end token plays the part of [CLS]."""
    allowed = causal_corner_mask(torch.tensor(ends), num_corner, mask)
    length = max(ends) + 1
    for b, end in enumerate(ends):
        place = {i: i for i in range(end)} | {end: end + num_corner}
        role = dict.fromkeys(range(end), TEXT) | {end: CLS}
        for c in range(num_corner):
            place[length + c], role[length + c] = end + c, CORNER
        for q in place:
            for k in place:
                rule = not mask or formula(0, 1 if q != k else 0, [role[q], role[k]])
                assert bool(allowed[b, q, k]) is (rule and place[k] <= place[q]), (b, q, k)
        padding = list(range(end + 1, length))
        read = allowed[b, [*range(end + 1), *range(length, length + num_corner)]]
        assert not read[:, padding].any()


def test_no_row_is_empty():
    assert corner_attention_mask(torch.tensor([[1, 1, 1, 0, 0]]), 2).any(-1).all()
    for mask in (True, False):
        assert causal_corner_mask(torch.tensor([1, 4]), 3, mask).any(-1).all()


@pytest.mark.parametrize(
    ("shape", "num_corner", "message"),
    [
        ((2, 5), -1, "must be a whole number from 0 .* came -1"),
        ((2, 5), 1.5, "must be a whole number from 0 .* came 1.5"),
        ((2, 5), 5, "no room for"),
        ((2, 5), 9, r"at least 10 are needed"),
        ((5,), 1, r"Expected an attention mask \[B, T\]"),
    ],
)
def test_bad_input(shape, num_corner, message):
    with pytest.raises(LabError, match=message):
        corner_attention_mask(torch.ones(shape), num_corner)


def test_bad_number_of_causal_corners():
    with pytest.raises(LabError, match="whole number from 0"):
        causal_corner_mask(torch.tensor([2]), -2)
