"""Queries: what of them a model reads, and words that it does not know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from longclip_lab.data.known_words import known_part
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.search.matches import QueryRead

_SHOWN = 160  # characters of an unread end in a message


def checked(texts: str | Sequence[str]) -> list[str]:
    """The queries as a list. Raises LabError for none, and for one that says nothing."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise LabError("Expected at least one query, got none.")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise LabError(f"Expected a query in words, got {text!r}.")
    return texts


def how_read(clip: Any, text: str) -> QueryRead:
    """How much of a query the model reads; its unread end is quoted if the tokenizer can tell."""
    tokens = clip.tokenize([text])
    read = int(tokens.lengths_B[0]) - 2
    if not tokens.num_truncated:
        return QueryRead(read, read, clip.context_length)
    if not hasattr(clip.tokenizer, "tokenize"):
        full = clip.tokenizer.encode_batch([text], clip.context_length).full_lengths
        return QueryRead(int(full[0]) - 2, read, clip.context_length, None)
    spans = clip.tokenizer.tokenize(text).spans
    end = spans[read - 1][1] if read else 0
    return QueryRead(len(spans), read, clip.context_length, text[end:].strip())


def warn_unread(model: str, reading: QueryRead) -> None:
    """Say which end of a query the model does not read, and why."""
    if reading.whole:
        return
    missing = reading.tokens - reading.read
    quoted, way = "", "Use a model with more positions, or `stretch` this one."
    if reading.read + 2 < reading.context_length:
        way = "It holds an end token, behind which nothing is read: take that out."
    if reading.unread is not None:
        start = reading.unread[:_SHOWN] + "…" * (len(reading.unread) > _SHOWN)
        quoted = f": “{start}”"
    warnings.warn(
        f"{model} reads {reading.read} of the query's {reading.tokens} tokens "
        f"({reading.context_length} positions). The last {missing} change nothing{quoted}. {way}",
        LabWarning,
        stacklevel=3,
    )


def readable_query(clip: Any, text: str) -> str:
    """The query in words that the model has: the tiny models know those of the drawn world only.

    Other words are left out and named in a LabWarning; a query for any other model comes back as
    it is. Raises LabError if no word is left.
    """
    words = getattr(clip.tokenizer, "words", None)
    if words is None:
        return text
    kept, unknown = known_part(text, words)
    if not any(character.isalnum() for character in kept):
        raise LabError(
            f"{clip.name} knows the {len(words)} words of the drawn world and none of {text!r}. "
            "Take another model, such as ViT-B-16 with --pretrained openai."
        )
    if unknown:
        warnings.warn(
            f"{clip.name} knows the {len(words)} words of the drawn world; left out of the query: "
            f"{', '.join(dict.fromkeys(unknown))}. Expect nothing of what it finds.",
            LabWarning,
            stacklevel=2,
        )
    return kept if unknown else text
