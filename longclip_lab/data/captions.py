"""Caption files: COCO's form, tables (CSV, TSV, JSON, JSONL, Parquet), sub-captions.

Every draw depends on (seed, epoch, picture) and on nothing that was drawn before, so that a
resumed run sees what the killed one would have seen.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data.validation import caption_defect, inside
from longclip_lab.errors import LabError
from longclip_lab.files import json_kind, parse_json, read_json, read_json_list, read_lines
from longclip_lab.text import split_subcaptions

# --- COCO's caption files: read, checked, and turned into captions by picture ---

FORM = (
    'COCO\'s form {"images": [{"id": 1, "file_name": "a.jpg"}, ...], '
    '"annotations": [{"id": 1, "image_id": 1, "caption": "..."}, ...]}'
)


@dataclass
class CaptionFile:
    """The pictures of a caption file in its order, their captions, and what is wrong with them."""

    captions: dict[str, list[str]]
    defects: dict[str, list[str]] = field(default_factory=dict)


def read_captions(path: Path) -> CaptionFile:
    """Read a COCO caption file (UTF-8 JSON); captions keep the file's order, ends stripped.

    Collects as defects: captions that are empty, missing (null, NaN) or no text, captions of a
    picture that is not listed. Raises LabError for a file that is missing, empty, not UTF-8, not
    JSON, of another form, that lists a picture twice, or whose file names leave the folder.
    """
    content = read_json(path, allow_nan=True)
    if not isinstance(content, dict):
        raise LabError(f"{path} holds a JSON {json_kind(content)}; expected {FORM}.")
    names = file_names(path, records_under(path, content, "images"))
    result = CaptionFile({name: [] for name in names.values()})
    seen: set[int | str] = set()
    for position, record in records_under(path, content, "annotations"):
        where = f"{path}: annotations[{position}]"
        image_id = identity_under(record, "image_id", where)
        if "caption" not in record:
            raise LabError(f'{where} has no text under "caption"; expected {FORM}.')
        check_id(record, where, seen)
        if image_id not in names:
            _note(result, "caption of a picture that is not listed", f"image_id {image_id}")
        elif defect := caption_defect(record["caption"]):
            _note(result, defect, names[image_id])
        else:
            result.captions[names[image_id]].append(record["caption"].strip())
    return result


def records_under(
    path: Path, content: dict, key: str, form: str = FORM
) -> Iterator[tuple[int, dict]]:
    """The objects of the list `key` with their positions. Raises LabError for anything else."""
    if not isinstance(content.get(key), list):
        raise LabError(f'{path} has no list "{key}"; expected {form}.')
    for position, record in enumerate(content[key]):
        if not isinstance(record, dict):
            raise LabError(f"{path}: {key}[{position}] is not an object; expected {form}.")
        yield position, record


def check_id(record: dict, where: str, seen: set[int | str], form: str = FORM) -> None:
    """Add the id of an annotation, where it has one. Raises LabError for one that is known."""
    if "id" not in record:
        return
    identity = identity_under(record, "id", where, form)
    if identity in seen:
        raise LabError(f"{where} repeats the annotation id {identity}; ids must differ.")
    seen.add(identity)


def identity_under(record: dict, key: str, where: str, form: str = FORM) -> int | str:
    """A picture's or an annotation's id. Raises LabError for anything but a number or a text."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise LabError(f'{where} has no number under "{key}"; expected {form}.')
    return value


def file_names(
    path: Path, records: Iterator[tuple[int, dict]], form: str = FORM
) -> dict[int | str, str]:
    """The pictures' names by id, every id and every name once. Raises LabError otherwise."""
    names: dict[int | str, str] = {}
    listed: set[str] = set()
    for position, record in records:
        where = f"{path}: images[{position}]"
        identity = identity_under(record, "id", where, form)
        name = record.get("file_name")
        name = inside(name, where) if isinstance(name, str) else ""
        if not name:
            raise LabError(f'{where} has no file\'s name under "file_name"; expected {form}.')
        if identity in names:
            raise LabError(f"{where} repeats the image id {identity}; every image once, please.")
        if name in listed:
            raise LabError(f"{where} repeats the file {name}; every image once, please.")
        names[identity] = name
        listed.add(name)
    return names


def _note(result: CaptionFile, reason: str, name: str) -> None:
    result.defects.setdefault(reason, []).append(name)


# --- Tables of captions as they are published: CSV, TSV, JSON, JSON lines and Parquet, row ---

Row = dict[str, Any]

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".jsonlines", ".parquet")
_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
_MISSING = ("NaN", "nan")  # how pandas and numpy write a value that is not there
_PARQUET_ROWS = 1024


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a table with where each stands, such as "line 7"; by the file's suffix.

    CSV and TSV are UTF-8 with or without a byte order mark, a header line, quotes where a field
    holds the delimiter or a line break; the delimiter (comma, tab or semicolon) is read off the
    header. JSON is a list of objects, JSONL one object a line. Parquet needs pyarrow.
    All are read piece by piece. A value that is missing comes as None, "" or NaN: pandas writes
    NaN to JSON, and to CSV if it is told to.

    Raises LabError for a file that is missing, empty, of another kind, not UTF-8, that has a
    column twice, whose rows do not fit its header, or that ends in an open quote.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise LabError(f"{path}: expected a table ({', '.join(SUFFIXES)}), got {path.suffix!r}.")
    if not path.is_file():
        raise LabError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise LabError(f"{path} is empty.")
    if suffix == ".parquet":
        return _parquet(path)
    if suffix == ".json":
        return (_object(path, *entry) for entry in read_json_list(path, allow_nan=True))
    return _json_lines(path) if suffix in (".jsonl", ".jsonlines") else _delimited(path)


def _delimited(path: Path) -> Iterator[tuple[str, Row]]:
    lines = read_lines(path)
    header = next(lines, "")
    delimiter = max(_DELIMITERS, key=header.count)
    if delimiter not in header:
        raise LabError(
            f"{path}: the header {header.strip()!r} is one column. Expected columns parted by "
            f"{', '.join(_DELIMITERS.values())}."
        )
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    start = 1
    try:
        columns = next(reader)
        _once(path, [name for name in columns if name])  # a spreadsheet leaves nameless ones
        # A quoted text may go over many lines: the row stands where it begins.
        start = reader.line_num + 1
        for fields in reader:
            where, start = f"line {start}", reader.line_num + 1
            if not fields:
                continue
            if len(fields) != len(columns):
                raise LabError(
                    f"{path}, {where}: {len(fields)} fields for {len(columns)} columns parted "
                    f"by {_DELIMITERS[delimiter]}. A text with the delimiter needs quotes."
                )
            values = (math.nan if field in _MISSING else field for field in fields)
            yield where, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise LabError(
            f"{path}, in the row of line {start}: {error}. Is a quote left open?"
        ) from None


def _once(path: Path, columns: list[str]) -> None:
    if twice := [name for name, times in Counter(columns).items() if times > 1]:
        raise LabError(
            f"{path} has the column {twice[0]!r} {columns.count(twice[0])} times, so that all but "
            "one would be lost. Rename or remove the others."
        )


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            where = f"line {number}"
            yield _object(path, where, parse_json(line, f"{path}, {where}", allow_nan=True))


def _object(path: Path, where: str, row: Any) -> tuple[str, Row]:
    if not isinstance(row, dict):
        raise LabError(f"{path}, {where}: expected an object, got a JSON {json_kind(row)}.")
    return where, row


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise LabError(
            f"{path} is a Parquet file, which pyarrow reads and which is not installed: "
            "pip install pyarrow, or save the table as CSV."
        ) from None
    try:
        with ParquetFile(path) as file:
            _once(path, file.schema_arrow.names)
            rows = (row for batch in file.iter_batches(_PARQUET_ROWS) for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows))
    except UnicodeDecodeError as error:
        raise LabError(f"{path} has a text that is not UTF-8: {error}.") from None
    except (ArrowException, OSError) as error:
        raise LabError(f"{path} is not a Parquet file that can be read: {error}") from None


# --- Which of several long captions a picture is trained with, and which part of it ---

SUBCAPTIONS = 3
"""How many LoTLIP trains with (section 5.1)."""


@dataclass(frozen=True)
class DrawnTexts:
    """One long text a picture, and how the draw went.

    `fewer` counts the pictures whose chosen caption has fewer sub-captions than asked for, all of
    which were used; `by_captioner` counts whose captions were chosen.
    """

    texts: list[str]
    fewer: int
    by_captioner: dict[str, int]


def sample_subcaptions(
    captions_by_captioner: Mapping[str, str],
    n: int | None = SUBCAPTIONS,
    seed: int | np.random.Generator = 0,
) -> str:
    """`n` consecutive sub-captions of one captioner's long caption, as one text.

    LoTLIP's rule (section 5.1 and appendix 7.2.1): choose a captioner evenly, then where to start
    evenly; the sub-captions (`text.split_subcaptions`) are joined by ". ", which its text tower
    reads as [SEP]. Of a caption with fewer all are used; n=None means all. The paper does not say
    whether a captioner is chosen first or all captions are strung together; choosing first keeps
    sub-captions of one text together.
    Raises LabError for n below 1 and for a picture without any long caption.

    >>> captions = {"A": "A cat. It sits. It is red. It looks up.", "B": "A red cat"}
    >>> sample_subcaptions(captions, 2, seed=0), sample_subcaptions(captions, 2, seed=1)
    ('A red cat', 'It sits. It is red')
    """
    return draw_subcaptions(captions_by_captioner, n, np.random.default_rng(seed))[0]


def draw_texts(
    captions: Sequence[Mapping[str, str]],
    n: int | None = SUBCAPTIONS,
    seed: int = 0,
    epoch: int = 0,
) -> DrawnTexts:
    """`sample_subcaptions` for every picture of one epoch (`Pairs.captioners`), with counts.

    Raises LabError as `sample_subcaptions` does, naming the picture's number.
    """
    texts, fewer, chosen = [], 0, Counter()
    for index, of_picture in enumerate(captions):
        try:
            drawn = draw_subcaptions(of_picture, n, np.random.default_rng((seed, epoch, index)))
        except LabError as error:
            raise LabError(f"Picture {index}: {error}") from None
        texts.append(drawn[0])
        chosen[drawn[1]] += 1
        fewer += n is not None and drawn[2] < n
    return DrawnTexts(texts, fewer, dict(sorted(chosen.items())))


def choose_caption(captions: Sequence[str], seed: int | np.random.Generator = 0) -> str:
    """One of a picture's short captions, evenly: the raw one or one of its rewrites.

    LaCLIP's text augmentation (Fan et al. 2023, section 3.3, equation 4). Raises LabError for none.

    >>> choose_caption(["a cat", "one cat", "cat"], seed=1)
    'one cat'
    """
    if not captions:
        raise LabError("There is no caption to choose from.")
    return captions[int(np.random.default_rng(seed).integers(len(captions)))]


@lru_cache(maxsize=32_768)
def _split(text: str) -> tuple[str, ...]:
    """Small sets come back every epoch, and splitting is a sixth of a tiny tower's step."""
    return tuple(split_subcaptions(text))


def draw_subcaptions(
    captions: Mapping[str, str], n: int | None, rng: np.random.Generator
) -> tuple[str, str, int]:
    """What `sample_subcaptions` gives, whose caption it is of, and how many that one has."""
    if n is not None and n < 1:
        raise LabError(
            f"Sub-captions: expected at least 1 (or None for all), got {n}; to train without long "
            "captions choose an objective that needs none."
        )
    split = {name: _split(text) for name, text in captions.items()}
    names = [name for name, parts in split.items() if parts]
    if not names:
        raise LabError("no captioner has a long caption with any text.")
    name = names[int(rng.integers(len(names)))]
    parts = split[name]
    count = len(parts) if n is None else min(n, len(parts))
    start = int(rng.integers(len(parts) - count + 1))
    return ". ".join(parts[start : start + count]), name, len(parts)
