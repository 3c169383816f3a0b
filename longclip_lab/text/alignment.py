"""Where the characters of a cleaned text came from.

CLIP's tokenizer repairs encodings, unescapes HTML, squeezes white space and lower-cases before it
looks at a text. To show which words a model read, every character of the cleaned text is traced
back to the characters of the original that it stands for.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

# The standard library's own rule for a character reference (html.unescape).
_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
_CHUNK = re.compile(r"\s+|\S+")
_LARGEST_COMPARISON = 250_000  # characters times characters; above, positions are interpolated


@dataclass(frozen=True)
class Traced:
    """A text of which character i came from `[starts[i], ends[i])` of an original."""

    text: str
    starts: list[int]
    ends: list[int]

    @classmethod
    def original(cls, text: str) -> Traced:
        """A text that is its own original."""
        return cls(text, list(range(len(text))), list(range(1, len(text) + 1)))

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original's characters behind the characters [start, end), which are not none."""
        return self.starts[start], self.ends[end - 1]

    def rewritten(self, pieces: Iterable[tuple[int, int, str]]) -> Traced:
        """The text made of pieces `(start, end, new)`: characters [start, end) became `new`.

        Within a piece places are interpolated: exact where lengths are equal or one is 1.
        """
        text: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        for start, end, new in pieces:
            if start == end and self.text:  # made from nothing: it belongs to its neighbour
                start, end = (start - 1, start) if start else (0, 1)
            size, count = end - start, len(new)
            if size == count:
                starts += self.starts[start:end]
                ends += self.ends[start:end]
            else:
                starts += [self.starts[start + i * size // count] for i in range(count)]
                ends += [self.ends[start - 1 - (-i * size // count)] for i in range(1, count + 1)]
            text.append(new)
        return Traced("".join(text), starts, ends)

    def unescaped(self) -> Traced:
        """As html.unescape does it, once."""
        if "&" not in self.text:
            return self
        pieces, last = [], 0
        for match in _REFERENCE.finditer(self.text):
            pieces.append((last, match.start(), self.text[last : match.start()]))
            pieces.append((*match.span(), html.unescape(match.group())))
            last = match.end()
        return self.rewritten([*pieces, (last, len(self.text), self.text[last:])])

    def squeezed(self) -> Traced:
        """Runs of white space become one space, and none is left at the ends."""
        if self.text == " ".join(self.text.split()):
            return self
        pieces, last = [], 0
        for match in re.finditer(r"\S+", self.text):
            if last:
                pieces.append((last, match.start(), " "))
            pieces.append((*match.span(), match.group()))
            last = match.end()
        return self.rewritten(pieces)

    def lowered(self) -> Traced:
        """As str.lower does it on the whole text, where one character may become two."""
        lower, pieces, position = self.text.lower(), [], 0
        if len(lower) == len(self.text):
            return Traced(lower, self.starts, self.ends)
        for i, character in enumerate(self.text):
            size = len(character.lower())
            pieces.append((i, i + 1, lower[position : position + size]))
            position += size
        return self.rewritten(pieces)

    def changed_to(self, new: str) -> Traced:
        """The same text after a change of which only the result is known: the least change."""
        old_chunks, new_chunks = _CHUNK.findall(self.text), _CHUNK.findall(new)
        pieces: list[tuple[int, int, str]] = []
        position = 0
        for old, replacement in _changes(old_chunks, new_chunks):
            pieces += [
                (position + start, position + end, piece)
                for start, end, piece in _character_changes(old, replacement)
            ]
            position += len(old)
        return self.rewritten(pieces)


def _changes(old: list[str], new: list[str]) -> Iterable[tuple[str, str]]:
    """Pairs (old part, new part) that run through both texts, in order, word by word."""
    old_words = [" " if chunk.isspace() else chunk for chunk in old]
    new_words = [" " if chunk.isspace() else chunk for chunk in new]
    if [word == " " for word in old_words] == [word == " " for word in new_words]:
        yield from zip(old, new, strict=True)
        return
    matcher = SequenceMatcher(None, old_words, new_words, autojunk=False)
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        if i2 - i1 == j2 - j1:
            yield from zip(old[i1:i2], new[j1:j2], strict=True)
        else:
            yield "".join(old[i1:i2]), "".join(new[j1:j2])


def _character_changes(old: str, new: str) -> Iterable[tuple[int, int, str]]:
    if old == new or len(old) * len(new) > _LARGEST_COMPARISON:
        yield 0, len(old), new
        return
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        yield i1, i2, new[j1:j2]
