"""The same model reading less of each text.

B texts, T tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longclip_lab.errors import LabError, Numbers
from longclip_lab.models import Clip, Tokens
from longclip_lab.text.truncation import cut_tokens

SHORTEST = 3
"""Start, one token and end."""


class ShorterTexts:
    """A model that gets every text cut at `length` tokens; in everything else it is `clip`.

    The end token stands at the cut, as for a text that is longer than the context.
    """

    def __init__(self, clip: Clip, length: int):
        self.clip, self.context_length = clip, length

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def tokenize(self, texts: str | Sequence[str]) -> Tokens:
        """Token ids [B, T] with T = `context_length`; what is longer is cut and counted."""
        tokens, n = self.clip.tokenize(texts), self.context_length
        tokenizer = self.clip.tokenizer
        ids_BT = cut_tokens(
            tokens.ids_BT, tokens.lengths_B, n - 2, tokenizer.end_id, tokenizer.pad_id
        )
        truncated_B = tokens.truncated_B | (tokens.lengths_B > n)
        return Tokens(ids_BT[:, :n], tokens.lengths_B.clamp(max=n), truncated_B)


def at_length(clip: Clip, length: int | None) -> Any:
    """`clip` with texts cut at `length` tokens, both special ones counted; None: at its context.

    Raises LabError for more tokens than the model reads, and for fewer than 3.

    >>> from longclip_lab.models import new_tiny
    >>> short = at_length(new_tiny(), 4)
    >>> short.tokenize(["a red boat", "a red boat on a lake"]).lengths_B.tolist()
    [4, 4]
    """
    if length is None or length == clip.context_length:
        return clip
    if length not in Numbers(at_least=SHORTEST, at_most=clip.context_length, whole=True):
        raise LabError(
            f"{clip.name} reads {SHORTEST} to {clip.context_length} tokens of a text; it cannot be "
            f"evaluated at {length}. Stretch its positions, or give another length."
        )
    return ShorterTexts(clip, length)
