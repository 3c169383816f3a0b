"""The drawn world's tokenizer: one word, one token."""

from __future__ import annotations

import re
from functools import cached_property
from importlib.resources import files

from longclip_lab.errors import LabError, suggest
from longclip_lab.text.base import TokenizedText, Tokenizer

_WORD = re.compile(r"\w+|[^\w\s]")


class WorldTokenizer(Tokenizer):
    """Lower-cased words and punctuation marks, each a token: position n is word n.

    Ids: 0 pads, words follow from 1 in the order of the vocabulary's file, start and end come
    last. The end token has the largest id because open_clip finds it with an argmax.
    """

    name = "world"

    def __init__(self) -> None:
        vocabulary = files("longclip_lab.text") / "vocabularies" / "world.txt"
        self.words = vocabulary.read_text(encoding="utf-8").split()
        self._ids = {word: number for number, word in enumerate(self.words, start=1)}
        self.vocab_size = len(self.words) + 3
        self.pad_id, self.start_id, self.end_id = 0, self.vocab_size - 2, self.vocab_size - 1

    @cached_property
    def _closest(self) -> list[str]:
        return [word for word in self.words if word.isalpha()]

    def _id(self, word: str) -> int:
        try:
            return self._ids[word.lower()]
        except KeyError:
            raise LabError(
                f"'{word}' is not a word of the drawn world. {self._near(word)} "
                "Texts of the real world need the tokenizer 'clip' or 'bert'."
            ) from None

    def _near(self, word: str) -> str:
        hint = suggest(word.lower(), self._closest)
        return hint if hint.startswith("Did") else f"It knows {len(self.words)} words."

    def encode(self, text: str) -> list[int]:
        """The ids of the words. Raises LabError for a word that the world does not have."""
        return [self._id(word) for word in _WORD.findall(text)]

    def tokenize(self, text: str) -> TokenizedText:
        """The words with their characters. Raises LabError for an unknown word.

        >>> WorldTokenizer().tokenize("A red boat.").spans
        [(0, 1), (2, 5), (6, 10), (10, 11)]
        """
        matches = list(_WORD.finditer(text))
        return TokenizedText(
            text=text,
            ids=[self._id(match.group()) for match in matches],
            tokens=[match.group().lower() for match in matches],
            spans=[match.span() for match in matches],
        )
