"""CLIP's tokenizer: OpenAI's byte-pair encoding, with every token's place in the original text.

The ids are those of open_clip's SimpleTokenizer (Radford et al. 2021; Sennrich et al. 2016). It is
written anew because that one gives no places, and because importing open_clip imports torch.
"""

from __future__ import annotations

import gzip
import html
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

from longclip_lab.errors import LabError
from longclip_lab.text.alignment import Traced
from longclip_lab.text.base import TokenizedText, Tokenizer

_START, _END = "<start_of_text>", "<end_of_text>"
_NUM_MERGES = 49152 - 256 - 2
_WORD = regex.compile(
    rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)
# Printable ASCII without "&": nothing for ftfy or html.unescape to change, and most captions.
_PLAIN = regex.compile(r"[\t\n\r -%'-~]*")


class ClipTokenizer(Tokenizer):
    """OpenAI's byte-pair encoding, 49,408 tokens, as open_clip's SimpleTokenizer runs it.

    Texts are repaired (ftfy), unescaped from HTML, squeezed and lower-cased first; the spans that
    `tokenize` gives refer to the text as it came. "<end_of_text>" written out in a text is the end
    token, as in open_clip: what follows it is not read, and counts as cut off.
    """

    name = "clip"
    pad_id = 0
    ends_at_first = True

    def __init__(self) -> None:
        self.merges = _merge_lines()
        """The pairs that were learnt, first to last, two pieces a line."""
        merges = [tuple(line.split()) for line in self.merges]
        alphabet = _byte_alphabet()
        entries = [*alphabet.values(), *(entry + "</w>" for entry in alphabet.values())]
        entries += ["".join(merge) for merge in merges] + [_START, _END]
        self._alphabet = [alphabet[byte] for byte in range(256)]
        self.entries = entries
        """All pieces, in the order of their ids; the last two are start and end."""
        self._ids = {entry: number for number, entry in enumerate(entries)}
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.vocab_size = len(entries)
        self.start_id, self.end_id = self._ids[_START], self._ids[_END]
        self._pieces = lru_cache(maxsize=1 << 16)(self._split_word)

    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens, equal to open_clip's."""
        words = _WORD.findall(" ".join(_repaired(text).split()).lower())
        return [number for word in words for number in self._pieces(word)[0]]

    def tokenize(self, text: str) -> TokenizedText:
        """The tokens with the characters of the original text that they came from.

        >>> tokenized = ClipTokenizer().tokenize("Café &amp; BAR")
        >>> tokenized.tokens, tokenized.spans
        (['cafÃ©</w>', '&</w>', 'bar</w>'], [(0, 4), (5, 10), (11, 14)])
        """
        cleaned = _traced(text)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for match in _WORD.finditer(cleaned.text):
            word_ids, word_spans = self._pieces(match.group())
            ids += word_ids
            spans += [
                cleaned.span(match.start() + start, match.start() + end)
                for start, end in word_spans
            ]
        readable = self.num_readable(ids)
        before_end = readable if readable < len(ids) else None
        entries = [self.entries[number] for number in ids]
        return TokenizedText(text, ids, entries, spans, before_end)

    def _split_word(self, word: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a word's pieces, and the characters of the word that each piece touches."""
        if word in (_START, _END):
            return [self._ids[word]], [(0, len(word))]
        pieces = self._merged([self._alphabet[byte] for byte in word.encode("utf-8")])
        character = [i for i, c in enumerate(word) for _ in c.encode("utf-8")]
        spans, position = [], 0
        for piece in pieces:
            size = len(piece.removesuffix("</w>"))
            spans.append((character[position], character[position + size - 1] + 1))
            position += size
        return [self._ids[piece] for piece in pieces], spans

    def _merged(self, pieces: list[str]) -> list[str]:
        """Join the pair of neighbours that was learnt first, everywhere, until none is known."""
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            best = min(set(pairwise(pieces)), key=lambda pair: self._ranks.get(pair, _NUM_MERGES))
            if best not in self._ranks:
                break
            joined: list[str] = []
            i = 0
            while i < len(pieces):
                if pieces[i] == best[0] and i + 1 < len(pieces) and pieces[i + 1] == best[1]:
                    joined.append(best[0] + best[1])
                    i += 2
                else:
                    joined.append(pieces[i])
                    i += 1
            pieces = joined
        return pieces


def _merge_lines() -> list[str]:
    """The merges in the file that open_clip ships; found without importing open_clip."""
    spec = find_spec("open_clip")
    folders = (spec and spec.submodule_search_locations) or []
    paths = [Path(folder) / "bpe_simple_vocab_16e6.txt.gz" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise LabError(
            "CLIP's vocabulary is not there: open_clip is missing or incomplete. "
            "Install it with `pip install open_clip_torch`."
        )
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 1 + _NUM_MERGES]


def _byte_alphabet() -> dict[int, str]:
    """A printable character for every byte, in the order in which the vocabulary lists them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def _repaired(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _traced(text: str) -> Traced:
    """The cleaned text, each of its characters traced to the original."""
    traced, repaired = Traced.original(text), _repaired(text)
    if repaired != text:
        # ftfy and html.unescape undo HTML up to three times; undoing it here first leaves the
        # comparison of old and new nothing but single characters to find.
        for _ in range(3):
            traced = traced.unescaped()
        traced = traced.changed_to(repaired)
    return traced.squeezed().lowered()
