"""Tokenizers with character spans: CLIP's BPE, BERT's WordPiece, LoTLIP's, the drawn world's.

CLIP's tokenizer repairs encodings, unescapes HTML, squeezes white space and lower-cases before it
looks at a text. To show which words a model read, every character of the cleaned text is traced
back to the characters of the original that it stands for.

Shape suffixes: B batch, T tokens.

The ids are those of open_clip's SimpleTokenizer (Radford et al. 2021; Sennrich et al. 2016). It is
written anew because that one gives no places, and because importing open_clip imports torch.
"""

from __future__ import annotations

import gzip
import html
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, cached_property, lru_cache
from importlib.resources import as_file, files
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftfy
import numpy as np
import regex
from tokenizers import Encoding, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece

from longclip_lab.errors import LabError, suggest
from longclip_lab.text.sentences import TokenBatch, pad_front, rearrange, subcaption_spans, truncate

if TYPE_CHECKING:
    import torch


# --- Where the characters of a cleaned text came from ---

# The standard library's own rule for a character reference (html.unescape).
_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
_CHUNK = re.compile(r"\s+|\S+")
_LARGEST_COMPARISON = 250_000  # characters times characters; above, positions are interpolated


@dataclass(frozen=True)
class Traced:
    """A text of which character i came from `[starts[i], ends[i])` of an original."""

    text: str
    starts: list[int]
    ends: list[int]

    @classmethod
    def original(cls, text: str) -> Traced:
        """A text that is its own original."""
        return cls(text, list(range(len(text))), list(range(1, len(text) + 1)))

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original's characters behind the characters [start, end), which are not none."""
        return self.starts[start], self.ends[end - 1]

    def rewritten(self, pieces: Iterable[tuple[int, int, str]]) -> Traced:
        """The text made of pieces `(start, end, new)`: characters [start, end) became `new`.

        Within a piece places are interpolated: exact where lengths are equal or one is 1.
        """
        text: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        for start, end, new in pieces:
            if start == end and self.text:  # made from nothing: it belongs to its neighbour
                start, end = (start - 1, start) if start else (0, 1)
            size, count = end - start, len(new)
            if size == count:
                starts += self.starts[start:end]
                ends += self.ends[start:end]
            else:
                starts += [self.starts[start + i * size // count] for i in range(count)]
                ends += [self.ends[start - 1 - (-i * size // count)] for i in range(1, count + 1)]
            text.append(new)
        return Traced("".join(text), starts, ends)

    def unescaped(self) -> Traced:
        """As html.unescape does it, once."""
        if "&" not in self.text:
            return self
        pieces, last = [], 0
        for match in _REFERENCE.finditer(self.text):
            pieces.append((last, match.start(), self.text[last : match.start()]))
            pieces.append((*match.span(), html.unescape(match.group())))
            last = match.end()
        return self.rewritten([*pieces, (last, len(self.text), self.text[last:])])

    def squeezed(self) -> Traced:
        """Runs of white space become one space, and none is left at the ends."""
        if self.text == " ".join(self.text.split()):
            return self
        pieces, last = [], 0
        for match in re.finditer(r"\S+", self.text):
            if last:
                pieces.append((last, match.start(), " "))
            pieces.append((*match.span(), match.group()))
            last = match.end()
        return self.rewritten(pieces)

    def lowered(self) -> Traced:
        """As str.lower does it on the whole text, where one character may become two."""
        lower, pieces, position = self.text.lower(), [], 0
        if len(lower) == len(self.text):
            return Traced(lower, self.starts, self.ends)
        for i, character in enumerate(self.text):
            size = len(character.lower())
            pieces.append((i, i + 1, lower[position : position + size]))
            position += size
        return self.rewritten(pieces)

    def changed_to(self, new: str) -> Traced:
        """The same text after a change of which only the result is known: the least change."""
        old_chunks, new_chunks = _CHUNK.findall(self.text), _CHUNK.findall(new)
        pieces: list[tuple[int, int, str]] = []
        position = 0
        for old, replacement in _changes(old_chunks, new_chunks):
            pieces += [
                (position + start, position + end, piece)
                for start, end, piece in _character_changes(old, replacement)
            ]
            position += len(old)
        return self.rewritten(pieces)


def _changes(old: list[str], new: list[str]) -> Iterable[tuple[str, str]]:
    """Pairs (old part, new part) that run through both texts, in order, word by word."""
    old_words = [" " if chunk.isspace() else chunk for chunk in old]
    new_words = [" " if chunk.isspace() else chunk for chunk in new]
    if [word == " " for word in old_words] == [word == " " for word in new_words]:
        yield from zip(old, new, strict=True)
        return
    matcher = SequenceMatcher(None, old_words, new_words, autojunk=False)
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        if i2 - i1 == j2 - j1:
            yield from zip(old[i1:i2], new[j1:j2], strict=True)
        else:
            yield "".join(old[i1:i2]), "".join(new[j1:j2])


def _character_changes(old: str, new: str) -> Iterable[tuple[int, int, str]]:
    if old == new or len(old) * len(new) > _LARGEST_COMPARISON:
        yield 0, len(old), new
        return
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        yield i1, i2, new[j1:j2]


# --- What every tokenizer of the lab offers, and what it returns ---

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

        return get_tokenizer, (self.name,)

    def __repr__(self) -> str:
        return f"<{self.name} tokenizer, {self.vocab_size} tokens>"


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise LabError(f"Expected texts (str), got {type(text).__name__}: {text!r:.60}.")
    return text


# --- CLIP's tokenizer: OpenAI's byte-pair encoding, with every token's place in the original ---

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


# --- BERT's tokenizer (bert-base-uncased), which LoTLIP's text tower reads with ---

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class BertTokenizer(Tokenizer):
    """WordPiece of bert-base-uncased: lower-cased, accents stripped, 30,522 tokens.

    [CLS] starts a text and [SEP] ends it. As in transformers, a special token written out in
    a text ("[SEP]") is that token, which LoTLIP's separator between sub-captions relies on.
    """

    name = "bert"

    def __init__(self) -> None:
        vocabulary = files("longclip_lab.text") / "vocabularies" / "bert-base-uncased.txt"
        with as_file(vocabulary) as path:
            self._backend = Backend(WordPiece.from_file(str(path), unk_token="[UNK]"))
        self._backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.add_special_tokens(SPECIAL_TOKENS)
        self.vocab_size = self._backend.get_vocab_size()
        self.pad_id, _, self.start_id, self.end_id, _ = map(
            self._backend.token_to_id, SPECIAL_TOKENS
        )

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise LabError(f"Half a surrogate pair is no text: {text!r:.60}.") from error

    def encode(self, text: str) -> list[int]:
        """The ids of the text's word pieces. Raises LabError for half a surrogate pair."""
        return self._encoding(text).ids

    def tokenize(self, text: str) -> TokenizedText:
        """The word pieces with their characters. Raises LabError for half a surrogate pair.

        >>> BertTokenizer().tokenize("Snowfields").tokens
        ['snow', '##fields']
        """
        encoding = self._encoding(text)
        return TokenizedText(text, encoding.ids, encoding.tokens, encoding.offsets)


# --- The drawn world's tokenizer: one word, one token ---

_WORDS_WORD = re.compile(r"\w+|[^\w\s]")


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
        return [self._id(word) for word in _WORDS_WORD.findall(text)]

    def tokenize(self, text: str) -> TokenizedText:
        """The words with their characters. Raises LabError for an unknown word.

        >>> WorldTokenizer().tokenize("A red boat.").spans
        [(0, 1), (2, 5), (6, 10), (10, 11)]
        """
        matches = list(_WORDS_WORD.finditer(text))
        return TokenizedText(
            text=text,
            ids=[self._id(match.group()) for match in matches],
            tokens=[match.group().lower() for match in matches],
            spans=[match.span() for match in matches],
        )


# --- How LoTLIP's text tower is fed: sub-captions between separators ---


class LotlipTokenizer(BertTokenizer):
    """BERT's word pieces with [SEP] between sub-captions: [CLS] .. [SEP] .. [SEP].

    A text of several sub-captions (`split_subcaptions`: newline, "</s>", full stop) loses these
    marks; [SEP] stands for them. A text that is a single one is read as it is, full stop included,
    as the released code reads raw captions and prompts. Corner tokens have no ids here: the text
    tower puts them in after [CLS] (`longclip_lab.models.add_corner_tokens`).

    Source: LoTLIP (Wu et al., NeurIPS 2024), section 4.3, and the code of its release. That code
    also repairs encodings with ftfy and unescapes HTML, which plain BERT does not.
    """

    name = "lotlip"

    def encode(self, text: str) -> list[int]:
        """The ids of the word pieces and separators, without the frame."""
        return self.tokenize(text).ids

    def tokenize(self, text: str) -> TokenizedText:
        """The word pieces with their characters; a [SEP] has those between two sub-captions.

        Raises LabError for half a surrogate pair.

        >>> LotlipTokenizer().tokenize("A dog. It sleeps.").tokens
        ['a', 'dog', '[SEP]', 'it', 'sleeps']
        """
        parts = subcaption_spans(text)
        if len(parts) < 2:
            return super().tokenize(text)
        whole = TokenizedText(text, [], [], [])
        last = 0
        for start, end in parts:
            if whole.ids:
                whole.ids.append(self.end_id)
                whole.tokens.append("[SEP]")
                whole.spans.append((last, start))
            part = super().tokenize(text[start:end])
            whole.ids.extend(part.ids)
            whole.tokens.extend(part.tokens)
            whole.spans.extend((start + first, start + after) for first, after in part.spans)
            last = end
        return whole


# --- The lab's tokenizers by name ---

TOKENIZERS = {
    "clip": ClipTokenizer,
    "bert": BertTokenizer,
    "lotlip": LotlipTokenizer,
    "world": WorldTokenizer,
}
"""The class behind each name; a vocabulary is read when it is first asked for."""


@cache
def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name; the same object every time.

    "clip" is OpenAI's BPE as open_clip runs it, "bert" is bert-base-uncased's WordPiece, "lotlip"
    the same with [SEP] between sub-captions, "world" has one token for every word of the drawn
    world. Raises LabError for another name.

    >>> get_tokenizer("clip").tokenize("Two boats.").tokens
    ['two</w>', 'boats</w>', '.</w>']
    """
    if name not in TOKENIZERS:
        raise LabError(f"Unknown tokenizer '{name}'. {suggest(str(name), TOKENIZERS)}")
    return TOKENIZERS[name]()
