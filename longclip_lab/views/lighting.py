"""What lights up when a reader points at words or at patches: computed on demand, remembered.

T tokens, W words, h w rows and columns of the patch grid.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from longclip_lab.attribution import (
    PATCH_METHODS,
    TOKEN_METHODS,
    PatchMap,
    Pictures,
    TokenMap,
    TokenPatches,
    as_pictures,
    attention,
    token_patches_of,
    tokens_within,
)
from longclip_lab.attribution.inputs import Picture
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip
from longclip_lab.text import split_sentences
from longclip_lab.text.splitting import Span

MATRICES = {
    "words alone": "each word alone against each patch (cosine, less empty text's)",
    "words in context": "the state at each word against each patch (cosine, less empty text's)",
}
"""The matrices of tokens and patches: they light up patches for words and words for patches."""

_WORD = re.compile(r"\w+(?:['’.,-]\w+)*|[^\w\s]+")
_REMEMBERED = 512  # maps; one of 14 x 14 patches takes 800 bytes
_PREPARED = 16  # pictures; one of 224 x 224 pixels takes 1.2 MB with its patches


@dataclass(frozen=True)
class Strip:
    """A text as a reader points at it: sentences, words, and how much of it the model read.

    `tokens` [T] are the spans of the tokens read; `unread` counts the others.
    """

    text: str
    tokens: tuple[tuple[int, int], ...]
    unread: int

    @cached_property
    def sentences(self) -> list[Span]:
        """The sub-captions, as `longclip_lab.text.split_sentences` finds them."""
        return split_sentences(self.text)

    @cached_property
    def words(self) -> list[Span]:
        """Words and punctuation marks."""
        return [Span(*match.span()) for match in _WORD.finditer(self.text)]

    @property
    def read(self) -> int:
        """The first character that the model did not read."""
        return self.tokens[-1][1] if self.unread and self.tokens else len(self.text)

    @property
    def words_read(self) -> int:
        """How many words the model read something of."""
        return sum(span.start < self.read for span in self.words) if self.tokens else 0

    def cut_off(self, span: Span) -> Span:
        """The part of the characters that the model read. Raises LabError if that is nothing."""
        end = min(span.end, self.read)
        if end <= span.start or not self.tokens:
            raise LabError("the model never read these words: they lie behind its cut.")
        return Span(span.start, end)

    @cached_property
    def tokens_of_words(self) -> np.ndarray:
        """Which tokens belong to which word that was read: bool [W, T]."""
        inside = [tokens_within(self.tokens, *word) for word in self.words[: self.words_read]]
        return np.array(inside, dtype=bool).reshape(self.words_read, len(self.tokens))


class Lighting:
    """The maps of pictures and texts, for both sides of a pair, remembered for the next question.

    A picture is named by its number among `images`, a text is given as it is, so that a reader
    can type one. The image side of a picture is prepared once for all words, so the weights of
    `clip` must not change meanwhile. Raises LabError as `longclip_lab.attribution.as_pairs` does.
    """

    def __init__(self, clip: Clip, images: Sequence[Picture]):
        self.clip = clip
        self.images = list(images)
        self._remembered: OrderedDict[tuple, Any] = OrderedDict()
        self._prepared = lru_cache(maxsize=_PREPARED)(self._prepare)

    def strip(self, text: str) -> Strip:
        """The text with what the model read of it."""
        pairs = self._once(("pairs", text), lambda: self._prepared(0).paired(text))
        return Strip(text, pairs.spans[0], pairs.unread[0])

    def matrix(self, picture: int, text: str, method: str = "") -> TokenPatches:
        """Every token against every patch; of each word alone unless `method` is another matrix."""
        tokens = matrix_of(method).removeprefix("words ")
        return self._once(
            ("matrix", picture, text, tokens),
            lambda: token_patches_of(self._prepared(picture).paired(text), tokens)[0],
        )

    def patches(
        self, picture: int, text: str, span: Span, method: str, options: dict[str, Any]
    ) -> PatchMap:
        """The patches for the characters `span` of the text.

        A matrix gives the mean of its tokens; every other method is asked about the characters as
        a text of their own.
        """
        if method in MATRICES:
            return self.matrix(picture, text, method).patches(*span)
        known(method, PATCH_METHODS)
        asked = text[slice(*span)] if PATCH_METHODS[method].asks_text else text
        found = self._once(
            ("patches", picture, asked, method, *sorted(options.items())),
            lambda: self._slim(
                PATCH_METHODS[method].run(self._prepared(picture).paired(asked), **options)
            ),
        )
        return replace(found, image=self.matrix(picture, text).image)

    def tokens(self, picture: int, text: str, method: str, options: dict[str, Any]) -> TokenMap:
        """The tokens for the whole picture."""
        known(method, TOKEN_METHODS)
        return self._once(
            ("tokens", picture, text, method, *sorted(options.items())),
            lambda: TOKEN_METHODS[method].run(self._prepared(picture).paired(text), **options)[0],
        )

    def tower(self, side: str, example: Any) -> tuple[int, int]:
        """Layers and heads of the tower "image" or "text", read off its weights of an example."""
        weights = self._once(
            ("tower", side), lambda: attention(self.clip, example, tower=side).weights.shape[:2]
        )
        return weights

    def _prepare(self, picture: int) -> Pictures:
        return as_pictures(self.clip, self.images[picture])

    def _slim(self, maps: list[PatchMap]) -> PatchMap:
        """The map without its own copy of the picture, which is a hundred times larger."""
        return replace(maps[0], image=maps[0].image[:0])

    def _once(self, key: tuple, compute: Callable[[], Any]) -> Any:
        if key not in self._remembered:
            self._remembered[key] = compute()
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        return self._remembered[key]


def load_methods() -> None:
    """Import what methods import at their first use, so that no reader waits for it later."""
    for method in (*PATCH_METHODS.values(), *TOKEN_METHODS.values()):
        for module in method.imports:
            importlib.import_module(module)


def matrix_of(method: str) -> str:
    """The matrix that goes with a method: itself, or the words alone."""
    return method if method in MATRICES else next(iter(MATRICES))


def known(method: str, methods: Sequence[str]) -> None:
    """Raise LabError, with near names, unless there is such a method."""
    if method not in methods:
        raise LabError(f"There is no method '{method}' here. {suggest(method, methods)}")


def options_of(method: str, methods: dict[str, Any]) -> list[str]:
    """Which of "layer" and "head" a method lets a reader choose."""
    if method not in methods:
        return []
    taken = inspect.signature(methods[method].run).parameters
    return [name for name in ("layer", "head") if name in taken]
