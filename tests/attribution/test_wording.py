"""Which tokens make up a word or a sentence."""

from __future__ import annotations

import pytest

from longclip_lab.attribution.similarity import groups_of, words_of
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer


def test_words_of_pieces():
    text = "Semi-detached don't, ok"
    spans = ((0, 4), (4, 5), (5, 13), (14, 17), (17, 19), (19, 20), (21, 23))
    whole = ["Semi-detached"] * 3 + ["don't"] * 2 + [",", "ok"]
    assert words_of(text, spans) == whole


def as_lists(groups) -> list[list[int]]:
    return [group.tolist() for group in groups]


def test_groups_of_real_tokens():
    text = "A sea-green Volkswagen. It isn't parked!"
    spans = get_tokenizer("clip").tokenize(text).spans
    words = groups_of(text, spans, "word")
    assert [text[spans[g[0]][0] : spans[g[-1]][1]] for g in words] == [
        "A", "sea-green", "Volkswagen", ".", "It", "isn't", "parked", "!"
    ]  # fmt: skip
    one, other = groups_of(text, spans, "sentence")
    assert text[: spans[one[-1]][1]] == "A sea-green Volkswagen."
    assert one[-1] + 1 == other[0]
    assert other[-1] == len(spans) - 1


def test_tokens_and_nothing():
    assert as_lists(groups_of("ab", ((0, 1), (1, 2)), "token")) == [[0], [1]]
    assert groups_of("", (), "word") == []
    with pytest.raises(LabError, match="Did you mean word"):
        groups_of("a", ((0, 1),), "words")
