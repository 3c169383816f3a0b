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
    share the bytes of one character share its span.
    """

    text: str
    ids: list[int]
    tokens: list[str]
    spans: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    def characters_read(self, context_length: int) -> int:
        """How many characters of `text` a context of so many tokens (start and end included) holds.

        >>> from longclip_lab.text import get_tokenizer
        >>> tokenized = get_tokenizer("clip").tokenize("A red boat lies on the lake.")
        >>> tokenized.text[: tokenized.characters_read(5)]
        'A red boat'
        """
        if len(self) + 2 <= context_length:
            return len(self.text)
        return self.spans[context_length - 3][1] if context_length > 2 else 0


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

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens, without special tokens."""

    @abstractmethod
    def tokenize(self, text: str) -> TokenizedText:
        """The text's tokens with their characters, without special tokens."""

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
        batch = truncate(framed, context_length, self.end_id, self.pad_id)
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
