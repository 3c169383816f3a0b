"""Labels keep apart, stay near, and can be read."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longclip_lab.views.theme import PALETTE, Box, beside_points, spread, text_colour, within

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


@given(VALUES, st.floats(0.1, 20))
def test_spread_leaves_gaps_and_keeps_order_and_mean(values, gap):
    placed = spread(values, gap)
    ranked = sorted(placed)
    assert all(b - a >= gap * (1 - 1e-9) - 1e-9 for a, b in pairwise(ranked))
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert sorted(range(len(values)), key=lambda i: placed[i]) == order
    assert math.isclose(sum(placed), sum(values), abs_tol=1e-6)


def test_spread_moves_nothing_that_has_room():
    assert spread([5.0, 1.0, 9.0], 2.0) == [5.0, 1.0, 9.0]


def test_names_beside_points_cover_neither_points_nor_each_other():
    points = [(100.0, 100.0), (110.0, 104.0), (300.0, 200.0)]
    names = ["one", "another", "third<br>with two lines"]
    places = beside_points(points, names, [], (600, 400))
    boxes = [
        Box(x - 4 * max(map(len, name.split("<br>"))), y - 8, x, y + 8)
        for (x, y), name in zip(places, names, strict=True)
    ]
    assert boxes[0].overlap(boxes[1]) == 0
    assert all(0 < x < 600 and 0 < y < 400 for x, y in places)
    assert all(math.dist(p, place) > 10 for p, place in zip(points, places, strict=True))


@pytest.mark.parametrize("colour", PALETTE)
def test_text_in_palette_colours_has_a_contrast_of_4_5_on_white(colour):
    """WCAG 2.2, success criterion 1.4.3."""
    text = text_colour(colour)
    shares = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 4.5


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=6))
def test_labels_stay_inside_the_axis(values):
    placed = within(spread(values, 10.0), 10.0, (0.0, 100.0))
    assert all(5 - 1e-9 <= place <= 95 + 1e-9 for place in placed)
    ranked = sorted(placed)
    assert all(b - a >= 10 - 1e-6 for a, b in pairwise(ranked))
