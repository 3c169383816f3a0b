"""Caption files, and how long their texts are: sub-captions, tokens, what a context would cut."""

from __future__ import annotations

import hashlib
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.errors import LabError, suggest
from longclip_lab.files import json_kind, parse_json, read_text
from longclip_lab.text.sentences import split_subcaptions
from longclip_lab.text.tokenizers import Tokenizer, get_tokenizer

# --- Captions from files: plain text, JSON lines, JSON, and the folder of ImageInWords ---

KEYS = ("IIW", "long_caption", "caption", "text", "description")
"""Where a record keeps its text: the first of these that the first record of a file has."""

IIW_PARTS = ("IIW-400", "DCI_Test", "DOCCI_Test")
"""The parts of ImageInWords (Garg et al. 2024) that LoTLIP evaluates on, a data.jsonl in each."""

_FORMS = (
    "a .txt (one text a line), a .jsonl (one object a line), a .json (a list), "
    f"or a folder with {', '.join(IIW_PARTS)}"
)


@dataclass(frozen=True)
class Texts:
    """Texts and where they came from.

    `names[i]` says where text i stands (file and line), `skipped` what was left out, by reason,
    `source` the files, the key and the hash of the texts; JSON-able and free of absolute paths.
    """

    name: str
    texts: list[str]
    names: list[str]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(path: str | os.PathLike[str], key: str | None = None) -> Texts:
    """Read the texts of a file or folder.

    - `.txt`: one text a line.
    - `.jsonl`: one object a line; its text is under `key`, or if that is None under the first of
      `KEYS` that the first object has. A line may also be a JSON string.
    - `.json`: a list of such objects or strings, or an object whose "annotations" is that list
      (COCO's caption files).
    - a folder in ImageInWords' layout: `IIW-400/data.jsonl`, `DCI_Test/...`, `DOCCI_Test/...`; or
      a folder with a data.jsonl.

    Empty and missing texts (null, NaN) are left out, counted and named in `skipped`, as are parts
    of ImageInWords that are not there. Raises LabError for a file that is missing, empty, not
    UTF-8, of another form, or without any text.
    """
    path = Path(path)
    files, skipped = _files(path)
    texts, names, empty, keys = [], [], [], {}
    for name, file in files.items():
        keys[name], entries = _read_file(file, key)
        for place, text in entries:
            if text.strip():
                texts.append(text)
                names.append(name + place)
            else:
                empty.append(name + place)
    if empty:
        skipped["empty caption"] = empty
    if not texts:
        count = f": all {len(empty)} entries are empty" if empty else ""
        raise LabError(f"{path} holds no text{count}. Expected {_FORMS}.")
    digest = hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()
    source = {"files": list(files), "keys": keys, "hash": f"sha256:{digest}"}
    return Texts(path.resolve().name or str(path), texts, names, skipped, source)


def _files(path: Path) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The files to read, by the name that places in them go by, and what is not there."""
    if path.is_file():
        return {path.name: path}, {}
    if not path.is_dir():
        raise LabError(f"There is no file or folder {path}. Expected {_FORMS}.")
    parts = {f"{part}/data.jsonl": path / part / "data.jsonl" for part in IIW_PARTS}
    found = {name: file for name, file in parts.items() if file.is_file()}
    if found:
        missing = [name for name in parts if name not in found]
        return found, {"part not there": missing} if missing else {}
    if (path / "data.jsonl").is_file():
        return {"data.jsonl": path / "data.jsonl"}, {}
    raise LabError(f"The folder {path} has none of {', '.join(parts)}. Expected {_FORMS}.")


def _read_file(path: Path, key: str | None) -> tuple[str | None, list[tuple[str, str]]]:
    """The key that was read (None for plain text) and the entries: place in the file, text."""
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl", ".json"):
        raise LabError(f"Do not know how to read {path}. Expected {_FORMS}.")
    content = read_text(path)
    if suffix == ".txt":
        lines = content.removesuffix("\n").split("\n") if content else []
        return None, [(f":{number}", line) for number, line in enumerate(lines, start=1)]
    records = _json_lines(path, content) if suffix == ".jsonl" else _json_list(path, content)
    if key is None:
        first = next((record for _, record in records if isinstance(record, dict)), {})
        key = next((known for known in KEYS if known in first), None)
    return key, [(place, _text_of(record, key, f"{path}{place}")) for place, record in records]


def _json_lines(path: Path, content: str) -> list[tuple[str, Any]]:
    return [
        (f":{number}", parse_json(line, f"{path}:{number}", allow_nan=True))
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]


def _json_list(path: Path, content: str) -> list[tuple[str, Any]]:
    records = parse_json(content, str(path), allow_nan=True) if content.strip() else []
    place = ""
    if isinstance(records, dict) and "annotations" in records:
        records, place = records["annotations"], ".annotations"
    if not isinstance(records, list):
        raise LabError(
            f"{path} holds a JSON {json_kind(records)}. Expected a list of texts or of objects, or "
            'an object with such a list under "annotations".'
        )
    return [(f"{place}[{i}]", record) for i, record in enumerate(records)]


def _text_of(record: Any, key: str | None, where: str) -> str:
    if isinstance(record, str):
        text = record
    elif not isinstance(record, dict):
        raise LabError(f"{where} is a JSON {json_kind(record)}. Expected an object or a string.")
    elif key not in record:
        raise LabError(f"{where} {_no_text(record, key)}")
    else:
        # pandas writes NaN for a text that is missing.
        missing = record[key] is None or record[key] != record[key]
        text = "" if missing else record[key]
    if not isinstance(text, str):
        raise LabError(f'{where} has a JSON {json_kind(text)} under "{key}". Expected a string.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise LabError(f"{where} holds half a surrogate pair, which is no text.") from None
    return text


def _no_text(record: dict[str, Any], key: str | None) -> str:
    if not record:
        return "is an empty object, without a text."
    if key is not None:
        return f'has nothing under "{key}". {suggest(key, record)}'
    has = ", ".join(list(record)[:8])
    return f"has none of the keys {', '.join(KEYS)}. It has {has}: name one with key=."


# --- How long texts are, and how much of them a context of a given length would never hold ---

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
