"""Captions and pictures as HTML."""

from __future__ import annotations

import re

import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer
from longclip_lab.views import Html, caption_html, scene_gallery


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(3)


def plain(html: str) -> str:
    body = html.partition("</style>")[2].partition('<div class="lc-legend">')[0]
    return re.sub(r"<[^>]*>", "", re.sub(r'<span class="cut">.*?</span>', "", body))


def test_the_text_stays_whole(pairs):
    caption = pairs.long_captions[0]
    for context in (None, 5, 77, 1000):
        assert plain(caption_html(caption, context)) == caption.text


def test_what_is_behind_the_context_is_marked_unread(pairs):
    caption = pairs.long_captions[0]
    shown = caption_html(caption, 77)
    unread = re.sub(r"<[^>]*>", "", shown.partition('class="unread">')[2])
    read = plain(shown)[: plain(shown).index(unread.partition("kind")[0])]
    assert len(get_tokenizer("world").tokenize(read)) == 75
    assert "unread" not in caption_html(caption, 1000).partition("</style>")[2]


def test_every_fact_is_underlined_once_per_side_of_the_cut(pairs):
    caption = pairs.long_captions[0]
    assert caption_html(caption).count('class="fact"') == len(caption.facts)
    assert 'class="fact"' not in caption_html(caption, facts=False)
    assert 'class="lc-legend"' not in caption_html(caption, legend=False)


def test_texts_without_known_facts_are_escaped():
    shown = caption_html("<b>A dog & a cat</b> " * 10, 20, tokenizer="clip")
    assert "&lt;b&gt;A dog &amp; a cat" in shown
    assert "20 positions end here" in shown


def test_notebooks_show_it_as_html(pairs):
    shown = caption_html(pairs.long_captions[0], 77)
    assert isinstance(shown, Html)
    assert shown._repr_html_() == shown


def test_the_gallery_has_a_picture_and_a_text_for_each(pairs):
    shown = scene_gallery(pairs, 12, pixels=48)
    assert shown.count('<img src="data:image/png;base64,') == 3
    assert all(f'alt="{text}"' in shown for text in pairs.short)
    with pytest.raises(LabError, match="n=0"):
        scene_gallery(pairs, 0)


def test_the_gallery_shows_pictures_that_are_not_drawn(pairs):
    class Photos:
        images, short = pairs.images, pairs.short

    assert "data:image/jpeg;base64," in scene_gallery(Photos, 1)
