"""Sub-captions and sentences."""

from __future__ import annotations

import re
from typing import NamedTuple

_SUBCAPTION_END = re.compile(r"\n|</s>|\.")

_SENTENCE_END = re.compile(
    r"(?P<mark>\.{2,}|…+|[.!?]+)(?P<close>[\"'”’»)\]]*)(?=\s|$)|\n"
    r"|(?<=[a-z]{3})\.(?=[A-Z][a-z]*\s)"  # a forgotten space: "on the lawn.The water"
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘]*$")
_WORD_AFTER = re.compile(r"\s*[(\[\"'“‘«]*(\w*)")

_TITLES = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "st", "mt", "ft", "rev", "gen", "col", "sgt", "capt", "lt",
    "cpl", "sen", "rep", "gov", "hon", "messrs",
})  # fmt: skip
_SHORTENED = frozenset({
    "etc", "e.g", "i.e", "a.m", "p.m", "a.k.a", "vs", "approx", "ca", "cf", "al", "inc", "ltd",
    "co", "corp", "bros", "jr", "sr", "est", "dept", "fig", "no", "nos", "vol", "ed", "eds",
    "pp", "min", "max", "in", "ft", "cm", "mm", "km", "kg", "lb", "lbs", "oz", "sq", "yd", "hr",
    "hrs", "sec", "ave", "blvd", "rd", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep",
    "sept", "oct", "nov", "dec",
})  # fmt: skip
_STARTERS = frozenset({
    "the", "a", "an", "it", "its", "this", "that", "these", "those", "there", "he", "she",
    "they", "his", "her", "their", "we", "you", "i", "in", "on", "at", "behind", "beside",
    "below", "above", "under", "next", "to", "from", "with", "while", "as", "some", "one", "two",
})  # fmt: skip


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int


def split_subcaptions(text: str) -> list[str]:
    """LoTLIP's rule: split at newlines, "</s>" and full stops; strip; leave out what is empty.

    A sub-caption is "a complete sentence ending with a period" (LoTLIP, Section 3), but the rule
    as released also splits at decimals and abbreviations. Counts after it match its Table 1.

    >>> split_subcaptions("A red boat. It is 2.5 m long.")
    ['A red boat', 'It is 2', '5 m long']
    """
    return [text[start:end] for start, end in subcaption_spans(text)]


def subcaption_spans(text: str) -> list[Span]:
    """The characters of every sub-caption of `split_subcaptions`, in order."""
    spans, start = [], 0
    for end, after in [*(m.span() for m in _SUBCAPTION_END.finditer(text)), (len(text),) * 2]:
        part = text[start:end]
        if part.strip():
            first = start + len(part) - len(part.lstrip())
            spans.append(Span(first, first + len(part.strip())))
        start = after
    return spans


def split_sentences(text: str) -> list[Span]:
    """The sentences as character spans, in order; together they hold all but white space.

    A sentence ends at a line's end or at `.`, `!`, `?` or `…` before white space (or before a
    capitalised word, where the space was forgotten). It does not end in a number (2.5); after a
    title, an initial, an acronym or an ellipsis, unless a word that usually starts a sentence
    follows; after another abbreviation, unless a capital follows; inside a quotation that the
    sentence goes on after; after the number of a list item.

    >>> text = "Dr. J. Smith is 1.8 m tall. He holds a sign, a hat, etc. and smiles."
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['Dr. J. Smith is 1.8 m tall.', 'He holds a sign, a hat, etc. and smiles.']
    """
    spans: list[Span] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match["mark"] is None or _ends(text, start, match):
            _add(spans, text, start, match.end())
            start = match.end()
    _add(spans, text, start, len(text))
    return spans


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the mark that was found ends the sentence that began at `start`."""
    after = _WORD_AFTER.match(text, match.end()).group(1)
    if match["close"] and after[:1].islower():
        return False
    mark = match["mark"]
    if mark.startswith("…") or (len(mark) > 1 and set(mark) == {"."}):
        return not after or after.lower() in _STARTERS
    if mark != ".":
        return True
    before = _WORD_BEFORE.search(text, start, match.start()).group()
    word = before.lower()
    if before.isdigit() and not text[start : match.start() - len(before)].strip():
        return False
    is_initial = len(before) == 1 and before.isupper() and before != "I"
    is_acronym = "." in before and all(len(part) == 1 for part in before.split("."))
    if word in _SHORTENED:
        return not after or after[:1].isupper()
    if word in _TITLES or is_initial or is_acronym:
        return not after or after.lower() in _STARTERS
    return True


def _add(spans: list[Span], text: str, start: int, end: int) -> None:
    """Append a stretch of text without the white space around it.

    One without a letter or digit, such as a second full stop, goes to the sentence before it.
    """
    part = text[start:end].strip()
    if not part:
        return
    first = text.index(part, start)
    if spans and not any(character.isalnum() for character in part):
        first = spans.pop().start
    spans.append(Span(first, start + len(text[start:end].rstrip())))
