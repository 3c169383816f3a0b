"""How long texts are, and how much of them a context of a given length would never hold."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.text.base import Tokenizer
from longclip_lab.text.reading import Texts, read_texts
from longclip_lab.text.splitting import split_subcaptions
from longclip_lab.text.tokenizers import get_tokenizer

CONTEXTS = (77, 248)
"""CLIP's context and Long-CLIP's."""

_NAMED = 5  # left-out entries that the report names
_SHOWN = 160  # characters of the example before and after its cut


@dataclass(frozen=True)
class Cut:
    """What a context of `context` tokens (start and end included) leaves of the texts.

    `texts` are longer, which is `share` of all; `share_of_tokens` of all tokens are never read,
    those behind an end token that a text holds itself included.
    """

    context: int
    texts: int
    share: float
    share_of_tokens: float


@dataclass(frozen=True)
class TextStatistics:
    """Counts over texts as in LoTLIP's Table 1, and what contexts would cut.

    Means are per text; tokens are counted without start and end, except against a context.
    `quantiles` holds the tokens of the shortest text, of the 5th, 50th and 95th percentile
    and of the longest text. `example` is the first cut text as
    (what the shortest context reads, what it never reads), or None. `ended_early` texts hold an end
    token themselves, behind which CLIP reads nothing.
    """

    name: str
    tokenizer: str
    num_texts: int
    subcaptions_per_text: float
    tokens_per_text: float
    quantiles: dict[str, float]
    cuts: tuple[Cut, ...]
    skipped: dict[str, list[str]]
    source: dict[str, Any]
    example: tuple[str, str] | None
    ended_early: int = 0

    def to_dict(self) -> dict[str, Any]:
        """One JSON-able object; shares are between 0 and 1."""
        return {
            "name": self.name,
            "tokenizer": self.tokenizer,
            "texts": self.num_texts,
            "subcaptions_per_text": self.subcaptions_per_text,
            "tokens_per_text": self.tokens_per_text,
            "token_quantiles": self.quantiles,
            **{f"share_longer_than_{cut.context}": cut.share for cut in self.cuts},
            **{f"texts_longer_than_{cut.context}": cut.texts for cut in self.cuts},
            **{f"share_of_tokens_beyond_{cut.context}": cut.share_of_tokens for cut in self.cuts},
            "texts_with_an_end_token": self.ended_early,
            "skipped": self.skipped,
            "source": self.source,
        }

    def render(self) -> str:
        """The numbers in sentences, for a terminal."""
        low, middle, high = (self.quantiles[name] for name in ("5%", "50%", "95%"))
        lines = [
            f"{self.name}: {self.num_texts} text{'s' * (self.num_texts != 1)}, "
            f"tokenizer {self.tokenizer}",
            f"  {self.subcaptions_per_text:8.2f} sub-captions a text",
            f"  {self.tokens_per_text:8.2f} tokens a text, without start and end "
            f"(median {middle:.0f}, 5-95% {low:.0f}-{high:.0f})",
        ]
        lines += [
            f"  {100 * cut.share:7.1f}% of the texts are longer than {cut.context} tokens, start "
            f"and end included; {100 * cut.share_of_tokens:.1f}% of all tokens are never read"
            for cut in self.cuts
        ]
        if self.ended_early:
            lines.append(
                f"  {self.ended_early} text{'s hold' if self.ended_early > 1 else ' holds'} an end "
                "token: what stands behind it is never read"
            )
        for reason, names in self.skipped.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"  left out, {reason}: {len(names)} ({', '.join(names[:_NAMED])}{more})")
        return "\n".join(lines + self._render_example())

    def _render_example(self) -> list[str]:
        if self.example is None:
            return []
        read, unread = (" ".join(part.split()) for part in self.example)
        read = f"... {read[-_SHOWN:]}" if len(read) > _SHOWN else read
        unread = f"{unread[:_SHOWN]} ..." if len(unread) > _SHOWN else unread
        return [
            f"For example, {self.cuts[0].context} tokens hold",
            textwrap.fill(read, 92, initial_indent="  ", subsequent_indent="  "),
            "and never",
            textwrap.fill(unread, 92, initial_indent="  ", subsequent_indent="  "),
        ]

    def __str__(self) -> str:
        return self.render()


def text_statistics(
    texts: Texts | Sequence[str],
    tokenizer: str | Tokenizer = "clip",
    contexts: Sequence[int] = CONTEXTS,
) -> TextStatistics:
    """Count sub-captions and tokens. Raises LabError if there is no text.

    >>> text_statistics(["A red boat. It is upright.", "A tree."], "world").tokens_per_text
    5.5
    """
    if not isinstance(texts, Texts):
        texts = Texts("texts", list(texts), [f"[{i}]" for i in range(len(texts))])
    if isinstance(tokenizer, str):
        tokenizer = get_tokenizer(tokenizer)
    if not texts.texts:
        raise LabError(f"{texts.name} holds no text to count.")
    counts = (
        _count(tokenizer, text, name) for text, name in zip(texts.texts, texts.names, strict=True)
    )
    lengths_N, readable_N = np.array(list(counts)).T
    levels = {"shortest": 0, "5%": 5, "50%": 50, "95%": 95, "longest": 100}
    return TextStatistics(
        name=texts.name,
        tokenizer=tokenizer.name,
        num_texts=len(texts),
        subcaptions_per_text=float(np.mean([len(split_subcaptions(t)) for t in texts.texts])),
        tokens_per_text=float(lengths_N.mean()),
        quantiles={name: float(np.percentile(lengths_N, q)) for name, q in levels.items()},
        cuts=tuple(_cut(lengths_N, readable_N, context) for context in sorted(contexts)),
        skipped=texts.skipped,
        source=texts.source,
        example=_example(texts.texts, lengths_N, readable_N, tokenizer, min(contexts, default=0)),
        ended_early=int((readable_N < lengths_N).sum()),
    )


def describe_texts(path: str | os.PathLike[str], tokenizer: str = "clip") -> TextStatistics:
    """The statistics of a file or folder: `text_statistics(read_texts(path), tokenizer)`."""
    return text_statistics(read_texts(path), get_tokenizer(tokenizer))


def _count(tokenizer: Tokenizer, text: str, name: str) -> tuple[int, int]:
    """A text's tokens, and how many of them a context could hold at all."""
    try:
        ids = tokenizer.encode(text)
        return len(ids), tokenizer.num_readable(ids)
    except LabError as error:
        raise LabError(f"{name}: {error}") from error


def _cut(lengths_N: np.ndarray, readable_N: np.ndarray, context: int) -> Cut:
    lost_N = lengths_N - np.minimum(readable_N, max(context - 2, 0))
    count = int((lengths_N + 2 > context).sum())
    total = max(int(lengths_N.sum()), 1)
    return Cut(context, count, count / len(lengths_N), float(lost_N.sum() / total))


def _example(
    texts: Sequence[str],
    lengths_N: np.ndarray,
    readable_N: np.ndarray,
    tokenizer: Tokenizer,
    context: int,
) -> tuple[str, str] | None:
    cut_texts = np.flatnonzero((lengths_N + 2 > context) | (readable_N < lengths_N))
    if not context or not len(cut_texts):
        return None
    text = texts[cut_texts[0]]
    end = tokenizer.tokenize(text).characters_read(context)
    return text[:end], text[end:]
