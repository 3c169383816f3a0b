"""What every tokenizer of the lab offers, and what it returns.

Shape suffixes: B batch, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longclip_lab.errors import LabError, suggest
from longclip_lab.text.truncation import TokenBatch, pad_front, rearrange, truncate

if TYPE_CHECKING:
    import torch

POLICIES = ("head", "drop", "move", "shuffle", "pad")
"""What `encode_batch` can do with texts; see its docstring."""


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text, without special tokens.

    `tokens` are the vocabulary's own entries (`cat</w>`, `##ing`), `spans` the characters of
    `text` that each token came from, half-open. Starts and ends never decrease; two tokens that
    share the bytes of one character share its span. `before_end` is the number of tokens before
    an end token that the text itself holds, for tokenizers whose models read no further; None
    where there is none.
    """

    text: str
    ids: list[int]
    tokens: list[str]
    spans: list[tuple[int, int]]
    before_end: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def characters_read(self, context_length: int) -> int:
        """How many characters of `text` a context of so many tokens (start and end included) holds.

        >>> from longclip_lab.text import get_tokenizer
        >>> tokenized = get_tokenizer("clip").tokenize("A red boat lies on the lake.")
        >>> tokenized.text[: tokenized.characters_read(5)]
        'A red boat'
        """
        readable = len(self) if self.before_end is None else self.before_end
        if readable == len(self) <= context_length - 2:
            return len(self.text)
        read = min(readable, context_length - 2)
        return self.spans[read - 1][1] if read > 0 else 0


class Tokenizer(ABC):
    """Text to token ids, with the characters that each token stands for.

    `start_id` and `end_id` frame every encoded text, `pad_id` fills it up. Called like
    open_clip's tokenizers, it returns a torch tensor; nothing else here needs torch.
    """

    name: str
    vocab_size: int
    start_id: int
    end_id: int
    pad_id: int
    ends_at_first: bool = False
    """Whether models with this tokenizer read a text off at its first end token and never see what
    stands behind it, as CLIP's do. An end token written out in a text then ends it: what follows
    counts as cut off. BERT's towers look both ways and read on behind a [SEP]."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens, without special tokens."""

    @abstractmethod
    def tokenize(self, text: str) -> TokenizedText:
        """The text's tokens with their characters, without special tokens."""

    def num_readable(self, ids: Sequence[int]) -> int:
        """How many of a text's tokens (`encode`) can be read, were the context long enough: those
        before an end token that the text itself holds, where that ends it, otherwise all."""
        ids = list(ids)
        held = self.ends_at_first and self.end_id in ids
        return ids.index(self.end_id) if held else len(ids)

    def encode_batch(
        self, texts: Sequence[str], context_length: int, policy: str = "head", seed: int = 0
    ) -> TokenBatch:
        """Token ids [B, context_length], framed and padded, and what was cut.

        Policies, each followed by open_clip's cut (the last kept token becomes the end token):
        "head" nothing else; "drop" without the first sentence; "move" with the first sentence
        moved to the end; "shuffle" with the sentences in random order; "pad" with a random number
        of padding tokens before the text, as many as still fit. The last two draw from `seed`.
        Drop, move and pad are what DeBias-CLIP uses against the first-sentence shortcut.
        Raises LabError for an unknown policy and for a context that has no room for the frame.
        """
        if isinstance(texts, str):
            texts = [texts]
        if policy not in POLICIES:
            raise LabError(f"Unknown truncation policy '{policy}'. {suggest(policy, POLICIES)}")
        rng = np.random.default_rng(seed)
        if policy in ("drop", "move", "shuffle"):
            texts = [rearrange(_checked(text), policy, rng) for text in texts]
        framed = [[self.start_id, *self.encode(_checked(text)), self.end_id] for text in texts]
        batch = truncate(framed, context_length, self.end_id, self.pad_id, self.ends_at_first)
        return pad_front(batch, self.pad_id, rng) if policy == "pad" else batch

    def __call__(self, texts: str | Sequence[str], context_length: int = 77) -> torch.LongTensor:
        """Token ids [B, context_length] as open_clip's tokenizers return them."""
        import torch

        return torch.from_numpy(self.encode_batch(texts, context_length).ids)

    def __reduce__(self) -> tuple[Callable[[str], Tokenizer], tuple[Any, ...]]:
        # Copies and other processes get the one shared instance: a vocabulary is never copied.
        from longclip_lab.text.tokenizers import get_tokenizer

        return get_tokenizer, (self.name,)

    def __repr__(self) -> str:
        return f"<{self.name} tokenizer, {self.vocab_size} tokens>"


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise LabError(f"Expected texts (str), got {type(text).__name__}: {text!r:.60}.")
    return text
