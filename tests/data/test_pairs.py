"""Pairs: which text a step trains with, and words that a tokenizer does not know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longclip_lab.data import (
    Pairs,
    choose_caption,
    draw_texts,
    keep_known_words,
    sample_subcaptions,
)
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer, sample_sentences, split_subcaptions

CAPTIONS = {"A": "a0. a1. a2. a3. a4.", "B": "b0\nb1</s>b2.", "C": "c0"}
words = st.text("xyz ", min_size=1).filter(str.strip)


@given(
    parts=st.lists(words, min_size=1, max_size=8),
    n=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_drawn_is_a_run_of_the_caption(parts, n, seed):
    whole = split_subcaptions(". ".join(parts))
    drawn = split_subcaptions(sample_subcaptions({"A": ". ".join(parts)}, n, seed))
    assert len(drawn) == min(n, len(whole))
    runs = [whole[start : start + len(drawn)] for start in range(len(whole) - len(drawn) + 1)]
    assert drawn in runs


def test_captioners_and_places_are_drawn_evenly():
    rng = np.random.default_rng(0)
    texts = Counter(sample_subcaptions(CAPTIONS, 3, rng) for _ in range(6000))
    assert texts["c0"] / 6000 == pytest.approx(1 / 3, abs=0.03)
    assert texts["b0. b1. b2"] / 6000 == pytest.approx(1 / 3, abs=0.03)
    for start in range(3):
        run = ". ".join(f"a{i}" for i in range(start, start + 3))
        assert texts[run] / 6000 == pytest.approx(1 / 9, abs=0.02)
    assert len(texts) == 5


def test_all_of_a_caption():
    assert sample_subcaptions({"A": CAPTIONS["A"]}, None) == "a0. a1. a2. a3. a4"


def test_a_captioner_that_wrote_nothing_is_never_chosen():
    assert {sample_subcaptions({"A": " .\n", "B": "b"}, 1, seed) for seed in range(20)} == {"b"}


def test_an_epoch_is_counted_and_can_be_drawn_again():
    drawn = draw_texts([CAPTIONS] * 300, 3, seed=1, epoch=2)
    assert drawn == draw_texts([CAPTIONS] * 300, 3, seed=1, epoch=2)
    assert drawn.texts != draw_texts([CAPTIONS] * 300, 3, seed=1, epoch=3).texts
    assert drawn.texts != draw_texts([CAPTIONS] * 300, 3, seed=2, epoch=2).texts
    assert drawn.fewer == drawn.by_captioner["C"] == drawn.texts.count("c0")
    assert sum(drawn.by_captioner.values()) == 300
    assert drawn.texts[:50] == draw_texts([CAPTIONS] * 50, 3, seed=1, epoch=2).texts
    assert draw_texts([CAPTIONS] * 9, None).fewer == 0


def test_rewrites_are_drawn_evenly():
    rng = np.random.default_rng(0)
    counts = Counter(choose_caption(["a", "b", "c", "d"], rng) for _ in range(4000))
    assert all(count == pytest.approx(1000, abs=120) for count in counts.values())


def test_sentences_without_the_summary():
    text = "Two cats. One is 2.5 m long. It sits. The other is blue."
    rng = np.random.default_rng(0)
    drawn = [sample_sentences(text, rng) for _ in range(500)]
    rest = ["One is 2.5 m long.", "It sits.", "The other is blue."]
    orders = {" ".join(s for i, s in enumerate(rest) if bits >> i & 1) for bits in range(1, 8)}
    assert set(drawn) == orders
    assert sample_sentences(text, 0, count=9) == " ".join(rest)
    assert sample_sentences(text, 0, count=9, drop_summary=False) == text
    assert sample_sentences("Two cats.", 0) == "Two cats."
    assert sample_sentences("", 0) == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample_subcaptions(CAPTIONS, 0), "at least 1 .* got 0"),
        (lambda: sample_subcaptions({}), "no captioner"),
        (lambda: draw_texts([CAPTIONS, {"A": ""}]), "Picture 1: no captioner"),
        (lambda: choose_caption([]), "no caption to choose"),
        (lambda: sample_sentences("A. B.", count=0), "at least 1, got 0"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(LabError, match=words):
        call()


PAIRS = Pairs(
    "two",
    [Path("a.jpg"), Path("b.jpg")],
    ["A man and a red boat.", "Zebras graze"],
    ["A man and a red boat. Boats, big.", "Zebras graze"],
    [["A man and a red boat.", "Boats, big."], ["Zebras graze"]],
    source={"dataset": "two"},
)


def test_unknown_words_are_left_out_and_counted():
    world = get_tokenizer("world")
    known = keep_known_words(PAIRS, world)
    assert known.short == ["A and a red boat .", "."]
    assert known.captions[0][0] == known.short[0]
    assert known.source == {"dataset": "two", "words": {"of": 13, "left_out": 5}}
    for text in known.short + known.long:
        world.encode(text)


def test_pairs_for_other_tokenizers_are_untouched():
    assert keep_known_words(PAIRS, get_tokenizer("clip")) is PAIRS
