"""Which tokens make up a word or a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from longclip_lab.errors import LabError, suggest
from longclip_lab.text import split_sentences

UNITS = ("word", "token", "sentence")
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def words_of(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The word that each token is a piece of.

    >>> words_of("a sunflower.", ((0, 1), (2, 5), (5, 11), (11, 12)))
    ['a', 'sunflower', 'sunflower', '.']
    """
    found = list(spans)
    words = [match.span() for match in _WORD.finditer(text)]
    for index, owner in enumerate(_owners(spans, words)):
        if owner:
            found[index] = words[owner - 1]
    return [text[start:end] for start, end in found]


def groups_of(text: str, spans: Sequence[tuple[int, int]], unit: str) -> list[np.ndarray]:
    """The indices of the tokens of each word, token or sentence, in order.

    Raises LabError for another unit.

    >>> groups_of("a sunflower", ((0, 1), (2, 5), (5, 11)), "word")
    [array([0]), array([1, 2])]
    """
    if unit not in UNITS:
        raise LabError(f"There is no unit '{unit}'. {suggest(unit, UNITS)}")
    if unit == "token":
        return [np.array([index]) for index in range(len(spans))]
    sentence = unit == "sentence"
    units = split_sentences(text) if sentence else [m.span() for m in _WORD.finditer(text)]
    owners = _owners(spans, units)
    return [np.flatnonzero(owners == owner) for owner in np.unique(owners)]


def _owners(spans: Sequence[tuple[int, int]], units: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each token the number, from 1, of the last unit that starts no later; 0 for none."""
    firsts = np.array([start for start, _ in units], dtype=int)
    return np.searchsorted(firsts, [start for start, _ in spans], side="right")
