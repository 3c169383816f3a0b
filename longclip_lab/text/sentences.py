"""Sentences and sub-captions: split, sampled, truncated.

Two levels: token ids (cut at the context's end or at any n, padding in front) and sentences
(drop, move, shuffle), which work on the text before it is tokenized.

Shape suffixes: B batch, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from longclip_lab.errors import LabError

# --- Sub-captions and sentences ---

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


# --- Texts drawn from a text: training on a part of the sentences ---


def sample_sentences(
    text: str,
    seed: int | np.random.Generator = 0,
    count: int | None = None,
    drop_summary: bool = True,
) -> str:
    """Some sentences of a long caption, without its first, in their order.

    DeBias-CLIP (arXiv 2602.22419): long captions begin with a summary that training leans on, so
    it is removed and the rest is sub-sampled; the paper's third part, padding in front, is
    `pad_front`. `count` sentences are kept, or all if there are fewer; None draws their number
    evenly, from 1 to all. A text of one sentence stays as it is.
    Raises LabError for a count below 1.

    >>> text = "Two cats. One is red. It sits. The other is blue."
    >>> sample_sentences(text, seed=0, count=2)
    'It sits. The other is blue.'
    """
    if count is not None and count < 1:
        raise LabError(f"Sentences: expected to keep at least 1, got {count}.")
    sentences = [text[start:end] for start, end in split_sentences(text)]
    if drop_summary and len(sentences) > 1:
        del sentences[0]
    if not sentences:
        return text
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(1, len(sentences) + 1)) if count is None else count
    kept = rng.choice(len(sentences), min(drawn, len(sentences)), replace=False)
    return " ".join(sentences[i] for i in sorted(kept))


# --- Cutting texts to a length, and the ways to choose what a cut leaves ---


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token ids [B, T] and how much of each text they hold.

    `lengths` counts the tokens that are read, start and end included, `full_lengths` those of the
    whole text (the rearranged one where a sentence policy was asked for). `truncated` are the texts
    of which an end is not read: they are longer than the context, or hold an end token themselves.
    """

    ids: np.ndarray
    lengths: np.ndarray
    full_lengths: np.ndarray
    truncated: np.ndarray

    @property
    def num_truncated(self) -> int:
        """Of how many texts of the batch an end is not read."""
        return int(self.truncated.sum())


def truncate(
    framed: Sequence[Sequence[int]],
    context_length: int,
    end_id: int,
    pad_id: int,
    ends_at_first: bool = False,
) -> TokenBatch:
    """Pad or cut token lists (start and end included) to [B, context_length], as open_clip does.

    Of a text that is too long the first `context_length` tokens are kept and the last of them
    becomes the end token. With `ends_at_first` (`Tokenizer.ends_at_first`) a text is read up to its
    first end token only, wherever that comes from; its ids stay as they are. Raises LabError for a
    context shorter than start and end.

    >>> truncate([[8, 1, 2, 9], [8, 1, 2, 3, 4, 9]], 5, end_id=9, pad_id=0).ids
    array([[8, 1, 2, 9, 0],
           [8, 1, 2, 3, 9]])
    """
    if context_length < 2:
        raise LabError(
            f"A context needs room for the start and end token: at least 2, got {context_length}."
        )
    full_lengths_B = np.array([len(ids) for ids in framed], dtype=np.int64)
    read_B = full_lengths_B
    if ends_at_first:
        read_B = np.array([list(ids).index(end_id) + 1 for ids in framed], dtype=np.int64)
    lengths_B = np.minimum(read_B, context_length)
    ids_BT = np.full((len(framed), context_length), pad_id, dtype=np.int64)
    for row, ids in zip(ids_BT, framed, strict=True):
        kept = ids[:context_length]
        row[: len(kept)] = kept
        row[len(kept) - 1] = end_id
    return TokenBatch(
        ids=ids_BT,
        lengths=lengths_B,
        full_lengths=full_lengths_B,
        truncated=full_lengths_B > lengths_B,
    )


def cut_tokens(ids_BT: Any, lengths_B: Any, n: int, end_id: int, pad_id: int) -> Any:
    """Keep the first `n` text tokens of every row and put the end token at the cut.

    `ids_BT` [B, T] and `lengths_B` [B] (start and end included) are numpy arrays or torch
    tensors; the result [B, T] is of `ids_BT`'s kind, and its lengths are min(lengths, n + 2).
    The start token is kept, rows of at most n text tokens stay as they are. Raises LabError for
    a negative n.

    >>> cut_tokens(np.array([[8, 1, 2, 3, 9, 0], [8, 1, 9, 0, 0, 0]]), [5, 3], 2, 9, 0)
    array([[8, 1, 2, 9, 0, 0],
           [8, 1, 9, 0, 0, 0]])
    """
    if n < 0:
        raise LabError(f"Cannot keep {n} tokens of a text: n must be 0 or more.")
    source_BT = np.asarray(ids_BT)
    lengths_B1 = np.asarray(lengths_B)[:, None]
    position_T = np.arange(source_BT.shape[1])
    is_longer_B1 = lengths_B1 > n + 2
    cut_BT = np.where(is_longer_B1 & (position_T == n + 1), end_id, source_BT)
    cut_BT = np.where(is_longer_B1 & (position_T > n + 1), pad_id, cut_BT)
    # A torch tensor is recognised by its method, so that torch need not be imported here.
    return ids_BT.new_tensor(cut_BT) if hasattr(ids_BT, "new_tensor") else cut_BT


def pad_front(batch: TokenBatch, pad_id: int, rng: np.random.Generator) -> TokenBatch:
    """Put a random number of padding tokens between the start token and the text.

    The number is drawn evenly from 0 to as many as fit, so that over many draws later positions
    are trained as well. `lengths` then counts the padding in front.
    """
    ids_BT, lengths_B = batch.ids.copy(), batch.lengths.copy()
    context_length = ids_BT.shape[1]
    for row, (ids_T, length) in enumerate(zip(batch.ids, batch.lengths, strict=True)):
        num_pads = int(rng.integers(0, context_length - length + 1))
        ids_BT[row, 1 : 1 + num_pads] = pad_id
        ids_BT[row, 1 + num_pads : length + num_pads] = ids_T[1:length]
        ids_BT[row, length + num_pads :] = pad_id  # behind an end token of the text's own
        lengths_B[row] += num_pads
    return TokenBatch(ids_BT, lengths_B, batch.full_lengths, batch.truncated)


def drop_sentence(text: str, which: int = 0) -> str:
    """The text without one sentence, by default the first.

    Numbers count from 0, or from the end if negative. The text stays if it has no such sentence,
    or no other.

    >>> drop_sentence("A dog and a cat. The dog is brown. The cat sleeps.")
    'The dog is brown. The cat sleeps.'
    """
    sentences = _sentences(text)
    if len(sentences) < 2 or not _has(sentences, which):
        return text
    del sentences[which]
    return " ".join(sentences)


def move_sentence(text: str, which: int = 0, to: int = -1) -> str:
    """The text with one sentence moved, by default the first to the end.

    Numbers count from 0, or from the end if negative. The text stays if it has no such sentence.

    >>> move_sentence("A dog and a cat. The dog is brown. The cat sleeps.")
    'The dog is brown. The cat sleeps. A dog and a cat.'
    """
    sentences = _sentences(text)
    if len(sentences) < 2 or not _has(sentences, which):
        return text
    moved = sentences.pop(which)
    sentences.insert(to if to >= 0 else len(sentences) + 1 + to, moved)
    return " ".join(sentences)


def shuffle_sentences(text: str, seed: int | np.random.Generator = 0) -> str:
    """The text with its sentences in random order; `seed` is a number or a generator."""
    sentences = _sentences(text)
    order = np.random.default_rng(seed).permutation(len(sentences))
    return " ".join(sentences[i] for i in order) if len(sentences) > 1 else text


def rearrange(text: str, policy: str, rng: np.random.Generator) -> str:
    """One of the sentence policies of `Tokenizer.encode_batch`: "drop", "move", "shuffle"."""
    if policy == "drop":
        return drop_sentence(text)
    return move_sentence(text) if policy == "move" else shuffle_sentences(text, rng)


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


def _has(sentences: list[str], number: int) -> bool:
    return -len(sentences) <= number < len(sentences)
