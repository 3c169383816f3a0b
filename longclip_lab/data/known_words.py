"""Real captions for a model that knows only the drawn world's words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from longclip_lab.data.pairs import Pairs

_WORD = re.compile(r"\w+|[^\w\s]")
NOTHING_KNOWN = "."


def known_part(text: str, words: Collection[str]) -> tuple[str, list[str]]:
    """The words and marks of a text that are among `words` (lower case), and the others.

    >>> known_part("A dog in a boat.", ["a", "boat", "in", "."])
    ('A in a boat .', ['dog'])
    """
    found = _WORD.findall(text)
    unknown = [word for word in found if word.lower() not in words]
    return " ".join(word for word in found if word.lower() in words), unknown


class KnownWords:
    """Texts without the words that are not known; `counts` says how many of how many went.

    >>> filtered = KnownWords(["a", "boat", "."])
    >>> filtered("A boat at dawn."), filtered("Dawn"), filtered.counts
    ('A boat .', '.', {'of': 6, 'left_out': 3})
    """

    def __init__(self, words: Iterable[str]):
        self.words = frozenset(words)
        self.counts = {"of": 0, "left_out": 0}

    def __call__(self, text: str) -> str:
        """What is left of `text`, its words apart; a full stop if nothing is."""
        kept, unknown = known_part(text, self.words)
        self.counts["of"] += len(_WORD.findall(text))
        self.counts["left_out"] += len(unknown)
        return kept or NOTHING_KNOWN


def keep_known_words(pairs: Any, tokenizer: Any) -> Any:
    """Leave out the words that a word-level tokenizer does not have, and count them.

    The world's tokenizer refuses a caption with a word that the world does not have, so the tiny
    models cannot read photographs' captions as they are. This makes the whole path run on them;
    scores mean nothing. `source["words"]` holds how many words there were and how many were left
    out. A caption of which nothing is left becomes a full stop. The world's own pairs come back as
    they are, and so do pairs for any other tokenizer. Shards of photographs lose their words as
    they are read, uncounted.
    """
    if hasattr(pairs, "known_to") and hasattr(tokenizer, "words"):
        return pairs if pairs.pictures == "values" else pairs.known_to(tokenizer.words)
    if not isinstance(pairs, Pairs) or not hasattr(tokenizer, "words"):
        return pairs
    filtered = KnownWords(tokenizer.words)
    captions = [[filtered(text) for text in texts] for texts in pairs.captions]
    captioners = [
        {who: filtered(text) for who, text in of_picture.items()} for of_picture in pairs.captioners
    ]
    source = {**pairs.source, "words": filtered.counts.copy()}
    return replace(
        pairs,
        short=[filtered(text) for text in pairs.short],
        long=[filtered(text) for text in pairs.long],
        captions=captions,
        captioners=captioners,
        source=source,
    )
