"""LoTLIP's sub-captions, and sentences that survive abbreviations and numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.text import split_sentences, split_subcaptions


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A dog. A cat.", ["A dog", "A cat"]),
        ("one</s>two\nthree", ["one", "two", "three"]),
        ("It is 2.5 m. . ..\n\n", ["It is 2", "5 m"]),
        ("no stop", ["no stop"]),
        (" . \n", []),
    ],
)
def test_subcaptions(text, parts):
    assert split_subcaptions(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "The mast is 3.5 m tall and costs $1.99 or so.",
        "Dr. Smith, Mrs. J. R. Jones and St. Peter's dog sit.",
        "The U.S. Navy ship sails at 5 p.m. past the pier.",
        "Fruits (e.g. apples, i.e. red ones, etc.) lie vs. pears.",
        "It says “Stop.” in red.",
        'A sign reads "Go!" on the left.',
        "It fades... slowly… into grey.",
        "See www.example.com or file.txt for approx. 5 ft. of it.",
        "The label No. 5 and fig. 2 by N.C. Wyeth et al. are old.",
        "1. A dog sits.",
        "no full stop",
    ],
)
def test_one_sentence_stays_whole(text):
    assert sentences(text) == [text]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A dog. a cat. the end", ["A dog.", "a cat.", "the end"]),
        ("Is it? Yes! It is.", ["Is it?", "Yes!", "It is."]),
        ("He has hats, etc. The dog sits.", ["He has hats, etc.", "The dog sits."]),
        ("On Main St. The car waits.", ["On Main St.", "The car waits."]),
        ("Made in the U.S. It is old.", ["Made in the U.S.", "It is old."]),
        ("It fades... The sky is dark.", ["It fades...", "The sky is dark."]),
        ("On the lawn.The dog sits.", ["On the lawn.", "The dog sits."]),
        ('It says "Go." A dog sits.', ['It says "Go."', "A dog sits."]),
        ("(A dog.) (A cat.)", ["(A dog.)", "(A cat.)"]),
        ("Title\n\nA dog . . A cat.", ["Title", "A dog . .", "A cat."]),
        ("Dogs in 2020. Cats.", ["Dogs in 2020.", "Cats."]),
    ],
)
def test_sentences_end_where_they_should(text, parts):
    assert sentences(text) == parts


@settings(deadline=None)
@given(st.text(alphabet="aA1.!?…\n \"')“” D(stThe", max_size=60) | st.text(max_size=60))
def test_sentences_hold_everything_but_white_space_in_order(text):
    spans = split_sentences(text)
    assert all(start < end for start, end in spans)
    assert all(before.end <= after.start for before, after in pairwise(spans))
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
