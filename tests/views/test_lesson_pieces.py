"""The caption with a slider and the table of similarities: what stands in their HTML."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.models import load
from longclip_lab.probing import read_along
from longclip_lab.text import get_tokenizer
from longclip_lab.views.html import matches_html
from longclip_lab.views.reading import along_html


@pytest.fixture(scope="module")
def along():
    return read_along(load("tiny"), world.pairs(12), index=2)


def test_the_slider_holds_every_state_and_the_whole_caption(along):
    page = along_html(along, start=10)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page).group(1))
    assert [state["cut"] for state in data["cuts"]] == list(along.cuts)
    assert [state["found"] for state in data["cuts"]] == along.found.tolist()
    assert all(str(i) in data["pictures"] for i in set(along.found.flat))
    body = page[page.index('<div class="text">') : page.index('<div class="bar">')]
    body = body.replace("77 positions end here", "")
    assert re.sub("<.*?>", "", body) == along.pairs.long[2]


def test_without_a_script_the_first_state_shows(along):
    page = along_html(along, start=10)
    tokens = len(get_tokenizer("world").tokenize(along.pairs.long[2]))
    assert len(re.findall(r'data-token="\d+" class="unread', page)) == tokens - 10
    assert f"10 tokens read; its picture is number {along.ranks[9]} of 12" in page


def test_the_slider_starts_at_one_of_its_cuts(along):
    with pytest.raises(LabError, match="start among the cuts 1 to 75"):
        along_html(along, start=76)


def test_each_text_has_its_best_picture_framed():
    pairs = world.pairs(3)
    page = matches_html(pairs, np.array([[0.1, 0.9, 0.2], [0.3, 0.1, 0.2], [0, 0, 1]]))
    rows = page.split("<tr>")[2:]
    best = [re.findall(r"<td( class=best)?", row).index(" class=best") for row in rows]
    assert best == [1, 0, 2]


def test_similarities_must_fit_texts_and_pictures():
    with pytest.raises(LabError, match=r"\[3, 3\] of 3 texts and 3 pictures, got \[2, 3\]"):
        matches_html(world.pairs(3), np.zeros((2, 3)))
