"""Sentences with their ground truth: which words say what about which thing.

A sentence is built from phrases; a phrase is either plain words or a fact (attribute, value).
Because the world's tokenizer makes one token of a word, a fact's place in the token sequence is
known exactly (position 0 is the start token).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longclip_lab.world.vocabulary import (
    COLOURS,
    GROUNDS,
    KINDS,
    NUMBERS,
    ORIENTATIONS,
    PATTERNS,
    PLACES,
    RELATIONS,
    SIZES,
    SKIES,
)

_WORD = re.compile(r"\w+|[^\w\s]")
_FUNCTION_WORDS = (
    "a and are at below centre comes from in is it lies light middle of on over picture scene "
    "see shows sky that the there things this to under we with"
)


class Phrase(NamedTuple):
    """A piece of a sentence. `attribute` is empty for words that state nothing."""

    words: str
    attribute: str = ""
    thing: int = -1
    true: bool = True


class Fact(NamedTuple):
    """What some words say.

    `thing` is the index of the thing in the scene (-1: the whole scene); `tokens` the half-open
    range of token positions in the caption, the start token being position 0; `span` the
    characters; `true` is False where the captioner made it up.
    """

    attribute: str
    value: str
    thing: int
    tokens: tuple[int, int]
    span: tuple[int, int]
    true: bool = True


@dataclass(frozen=True)
class Sentence:
    """One sentence of a caption, with the facts it states and the thing it speaks of (-1: none)."""

    text: str
    span: tuple[int, int]
    tokens: tuple[int, int]
    thing: int
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Caption:
    """A caption and its sentences. `str(caption)` is the text."""

    text: str
    sentences: tuple[Sentence, ...]

    def __str__(self) -> str:
        return self.text

    @property
    def num_tokens(self) -> int:
        """Tokens with the start and end token."""
        return (self.sentences[-1].tokens[1] if self.sentences else 1) + 1

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(fact for sentence in self.sentences for fact in sentence.facts)


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text: the world's tokens.

    >>> words_of("A red boat, on the left.")
    ['A', 'red', 'boat', ',', 'on', 'the', 'left', '.']
    """
    return _WORD.findall(text)


def _join(phrases: Sequence[Phrase]) -> tuple[str, list[tuple[int, int]]]:
    text, spans = "", []
    for phrase in phrases:
        if text and phrase.words not in {",", "."}:
            text += " "
        words = phrase.words if text else phrase.words[:1].upper() + phrase.words[1:]
        spans.append((len(text), len(text) + len(words)))
        text += words
    return text, spans


def build_sentence(phrases: Sequence[Phrase]) -> Sentence:
    """Join phrases to a sentence that stands alone (positions counted from its own start)."""
    text, spans = _join(phrases)
    facts, position = [], 1
    for phrase, span in zip(phrases, spans, strict=True):
        length = len(words_of(phrase.words))
        if phrase.attribute:
            tokens = (position, position + length)
            value = phrase.words.lower()
            facts.append(Fact(phrase.attribute, value, phrase.thing, tokens, span, phrase.true))
        position += length
    things = [fact.thing for fact in facts if fact.thing >= 0]
    return Sentence(text, (0, len(text)), (1, position), things[0] if things else -1, tuple(facts))


def build_caption(sentences: Sequence[Sentence]) -> Caption:
    """Put sentences one after another, and shift their spans and token positions."""
    text, placed, position = "", [], 1
    for sentence in sentences:
        start = len(text) + (1 if text else 0)
        by_chars, by_tokens = start - sentence.span[0], position - sentence.tokens[0]
        facts = tuple(
            fact._replace(
                tokens=(fact.tokens[0] + by_tokens, fact.tokens[1] + by_tokens),
                span=(fact.span[0] + by_chars, fact.span[1] + by_chars),
            )
            for fact in sentence.facts
        )
        text = f"{text} {sentence.text}" if text else sentence.text
        position += sentence.tokens[1] - sentence.tokens[0]
        tokens = (position - (sentence.tokens[1] - sentence.tokens[0]), position)
        placed.append(Sentence(sentence.text, (start, len(text)), tokens, sentence.thing, facts))
    return Caption(text, tuple(placed))


def world_words() -> tuple[str, ...]:
    """Every word of captions and templates: the lines of `text/vocabularies/world.txt`."""
    values = [*KINDS, *COLOURS, *SIZES, *PATTERNS, *ORIENTATIONS, *GROUNDS, *SKIES, *NUMBERS]
    phrases = [*values, *PLACES, *RELATIONS, _FUNCTION_WORDS]
    words = [word for phrase in phrases for word in phrase.split()]
    return (".", ",", *dict.fromkeys(words))
