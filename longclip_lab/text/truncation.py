"""Cutting texts to a length, and the ways to choose what a cut leaves.

Two levels: token ids (cut at the context's end or at any n, padding in front) and sentences
(drop, move, shuffle), which work on the text before it is tokenized.

Shape suffixes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.text.splitting import split_sentences


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
