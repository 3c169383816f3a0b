"""The table of similarities: what stands in its HTML."""

from __future__ import annotations

import re

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.views.html import matches_html


def test_each_text_has_its_best_picture_framed():
    pairs = world.pairs(3)
    page = matches_html(pairs, np.array([[0.1, 0.9, 0.2], [0.3, 0.1, 0.2], [0, 0, 1]]))
    rows = page.split("<tr>")[2:]
    best = [re.findall(r"<td( class=best)?", row).index(" class=best") for row in rows]
    assert best == [1, 0, 2]


def test_similarities_must_fit_texts_and_pictures():
    with pytest.raises(LabError, match=r"\[3, 3\] of 3 texts and 3 pictures, got \[2, 3\]"):
        matches_html(world.pairs(3), np.zeros((2, 3)))
