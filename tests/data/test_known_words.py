"""Real captions for a word-level tokenizer: what it does not know is left out and counted."""

from __future__ import annotations

from pathlib import Path

from longclip_lab.data import Pairs, keep_known_words
from longclip_lab.text import get_tokenizer

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
