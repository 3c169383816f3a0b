"""Published layouts of long captions, as entries and as data sets.

dreamlip: DreamLIP's long captions of CC3M, CC12M and YFCC15M, which LoTLIP trains with as well.
    `cc3m_3long_3short_1raw_captions_url.csv` (or the same columns as Parquet, JSON or JSONL):
    "Image Path", "raw_caption", and for InstructBLIP (IB), ShareGPT4V (SV) and LLaVA (LLA)
    "short.._captions" and "long.._captions". As published, "Image Path" is the picture's address.
lotlip: LoTLIP's long captions of LAION and COYO (Recap-Long-Laion, Recap-Long-Coyo),
    `laion_3long_captions.csv`: the long captions of the same three, without short ones. Their
    header was not at hand when this was written: columns are found by DreamLIP's names, or given.
sharegpt4v: a JSON list of {"id", "image": "sam/images/sa_1.jpg", "conversations": [{"from":
    "human", "value": ..}, {"from": "gpt", "value": the long caption}]}, such as
    `share-captioner_coco_lcs_sam_1246k_1107.json`. The caption is the first turn whose "from" is
    the model's (`ANSWERERS`), wherever it stands.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from longclip_lab.data.pairs import Pairs
from longclip_lab.data.validation import (
    EMPTY,
    Defects,
    caption_defect,
    content_hash,
    format_errors,
    inside,
    usable_images,
)
from longclip_lab.errors import COUNT, LabError, suggest
from longclip_lab.files import json_kind, parse_json, read_json_list, read_lines

# --- Tables of captions as they are published, row by row ---

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


# --- The published layouts of long captions, each read to the same entries ---

LAYOUTS = ("dreamlip", "lotlip", "sharegpt4v")
ANSWERERS = ("gpt", "assistant", "model", "chatgpt", "bot")
"""What the model of a conversation is called under "from", in small letters."""
NO_ANSWER = "conversation without an answer by a model"
_SUFFIX_OF = {"InstructBLIP": "IB", "LLaVA": "LLA", "ShareGPT4V": "SV"}


def _named(kind: str) -> dict[str, str]:
    return {captioner: f"{kind}{suffix}_captions" for captioner, suffix in _SUFFIX_OF.items()}


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called; long and short ones by captioner."""

    image: str = "Image Path"
    raw: str = "raw_caption"
    long: Mapping[str, str] = field(default_factory=lambda: _named("long"))
    short: Mapping[str, str] = field(default_factory=lambda: _named("short"))


@dataclass
class Entry:
    """One picture's texts as a table has them, stripped; empty ones are left out.

    `picture` is what the table calls it, `where` the place in the file, `long` by captioner.
    `defects` are captions that cannot be one, by reason and column.
    """

    where: str
    picture: str
    raw: str
    long: dict[str, str]
    short: list[str]
    defects: list[tuple[str, str]] = field(default_factory=list)


def read_columns(path: Path, columns: Columns) -> Iterator[Entry]:
    """The entries of a table with one column a caption.

    Raises LabError for a table without pictures or without any long captions.
    """
    for number, (where, row) in enumerate(read_rows(path)):
        if number == 0:
            columns = _present(path, row, columns)
        entry = Entry(where, "", "", {}, [])
        entry.picture = _text(row.get(columns.image), columns.image, [])
        entry.raw = _text(row.get(columns.raw), columns.raw, entry.defects)
        entry.long = _filled(row, columns.long, entry.defects)
        entry.short = list(_filled(row, columns.short, entry.defects).values())
        yield entry


def read_conversations(path: Path) -> Iterator[Entry]:
    """The entries of ShareGPT4V's JSON list; there are no raw captions.

    Raises LabError as `answer_of` does.
    """
    for where, row in read_rows(path):
        entry = Entry(where, "", "", {}, [])
        entry.picture = _text(row.get("image"), "image", [])
        answer = answer_of(row, f"{path}, {where}")
        if answer is None:
            entry.defects.append((NO_ANSWER, ""))
        elif long := _text(answer["value"], "value", entry.defects):
            entry.long = {"ShareGPT4V": long}
        yield entry


def answer_of(row: Row, where: str) -> Row | None:
    """The model's turn of a conversation, the first if there are several; None if it has none.

    Turns are known by who speaks, not by their place: a system's may come first. Raises LabError
    for an entry of another form.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or "image" not in row:
        raise LabError(
            f'{where}: expected {{"image": "a.jpg", "conversations": [question, {{"from": "gpt", '
            f'"value": the long caption}}]}}, got the keys {", ".join(map(repr, row))}.'
        )
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if isinstance(speaker, str) and speaker.strip().lower() in ANSWERERS:
            if "value" not in turn:
                has = ", ".join(map(repr, turn))
                raise LabError(f"{where}: expected a text under 'value'. It has {has}.")
            return turn
    return None


def _present(path: Path, row: Row, columns: Columns) -> Columns:
    """The columns, once it is sure that the table has a picture and a long caption."""
    # DreamLIP's files of one object a picture spell it without the space.
    image = next((name for name in (columns.image, "ImagePath") if name in row), None)
    if image is None or not any(name in row for name in columns.long.values()):
        raise LabError(
            f"{path}: expected the column {columns.image!r} and at least one of "
            f"{', '.join(map(repr, columns.long.values()))}; it has "
            f"{', '.join(map(repr, row))}. Give their names with columns=Columns(...)."
        )
    return replace(columns, image=image)


def _filled(row: Row, names: Mapping[str, str], defects: list[tuple[str, str]]) -> dict[str, str]:
    texts = {who: _text(row.get(name), name, defects) for who, name in names.items()}
    return {who: text for who, text in texts.items() if text}


def _text(value: Any, name: str, defects: list[tuple[str, str]]) -> str:
    # Shards made from these tables keep each caption as a list of one.
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    defect = caption_defect(value)
    if defect and defect != EMPTY:  # which texts have to be there, the layout's reader knows
        defects.append((defect, name))
    return "" if defect else value.strip()


# --- Opened as a data set ---

LONGCLIP_VALIDATION = 1000
"""Long-CLIP's code validates on the first so many entries of ShareGPT4V and trains on the rest."""


def recaptioned(
    root: str | Path,
    layout: str,
    table: str | Path | None = None,
    split: str | None = None,
    paths: Mapping[str, str] | None = None,
    columns: Columns | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    verify: bool = False,
    progress: bool = False,
) -> Pairs:
    """Open a published set of long captions (`data.layouts` describes each layout) as `Pairs`.

    `short` is the raw caption, or the first sentence of the long one where there is none (stated
    in `source["short"]`); `captioners` holds every captioner's long caption, `long` the first of
    them; `captions` the raw caption and the captioners' short ones. For one training epoch draw
    from `captioners` with `draw_texts`.

    `table` defaults to the only table in `root`, or to the one whose name begins with `split`
    ("cc3m"); for sharegpt4v, `split` is "train" or "val", Long-CLIP's own. `paths` maps what the
    table calls a picture, such as its address, to its path below `root`. `limit` reads the first
    entries only. A missing picture, an empty raw caption, a caption that is no text, a picture
    without any long caption or listed twice raises a LabError that counts and names them; with
    `skip_bad=True` they are left out, counted and named in `skipped`. `verify=True` decodes every
    picture (about 2 ms each).
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise LabError(f"There is no layout {layout!r}. {suggest(layout, LAYOUTS)}")
    if not root.is_dir():
        raise LabError(f"There is no folder {root}.")
    if limit is not None:
        COUNT.check("limit, the number of entries to read,", limit)
    of_conversations = layout == "sharegpt4v"
    path = _find_table(root, table, None if of_conversations else split)
    if of_conversations:
        rows = islice(read_conversations(path), *_longclip_split(split, limit))
    else:
        rows = islice(read_columns(path, columns or Columns()), limit)
    defects: Defects = {}
    entries = _collect(path, rows, paths, defects)
    digests = usable_images(root, list(entries), verify, defects, progress)
    if defects and not skip_bad:
        raise LabError(format_errors(path, defects))
    if not digests:
        raise LabError(f"{path} leaves no picture with a long caption to work with.")
    kept = [entries[name] for name in digests]
    is_raw = all(entry.raw for entry in kept)
    firsts = [next(iter(entry.long.values())) for entry in kept]
    short = [
        entry.raw if is_raw else first.split(". ")[0]
        for entry, first in zip(kept, firsts, strict=True)
    ]
    captions = [[text, *entry.short] for text, entry in zip(short, kept, strict=True)]
    every = [
        [*texts, *entry.long, *entry.long.values()]
        for texts, entry in zip(captions, kept, strict=True)
    ]
    return Pairs(
        name=f"{layout}/{split or path.stem}",
        images=[root / picture for picture in digests],
        short=short,
        long=firsts,
        captions=captions,
        skipped=defects,
        source={
            "dataset": layout,
            "table": path.name,
            "split": split or "all",
            "pairs": len(kept),
            "captioners": dict(Counter(who for entry in kept for who in entry.long)),
            "short": "raw caption" if is_raw else "the long caption before the first '. '",
            "long": "the first captioner's caption, whole",
            "hash": content_hash(digests, every),
            "hash_of": "captions and pictures" if any(digests.values()) else "captions and names",
        },
        captioners=[entry.long for entry in kept],
    )


def _find_table(root: Path, table: str | Path | None, split: str | None) -> Path:
    if table is not None:
        return root / table
    found = sorted(path for path in root.glob("[!.]*") if path.suffix.lower() in SUFFIXES)
    fitting = [path for path in found if split is None or path.name.startswith(split)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(path.name for path in found) or "none"
    wanted = "table" if split is None else f"table whose name begins with {split!r}"
    raise LabError(
        f"{root} should hold one {wanted} ({', '.join(SUFFIXES)}); it holds {names}. "
        "Say which with table or split."
    )


def _longclip_split(split: str | None, limit: int | None) -> tuple[int, int | None]:
    bounds = {
        None: (0, None),
        "val": (0, LONGCLIP_VALIDATION),
        "train": (LONGCLIP_VALIDATION, None),
    }
    if split not in bounds:
        raise LabError(f"ShareGPT4V has the splits train and val; came {split!r}.")
    start, stop = bounds[split]
    ends = [end for end in (stop, None if limit is None else start + limit) if end is not None]
    return start, min(ends, default=None)


def _collect(
    path: Path,
    rows: Iterator[Entry],
    paths: Mapping[str, str] | None,
    defects: Defects,
) -> dict[str, Entry]:
    """Usable entries by the picture's path; the others go to `defects`."""
    entries: dict[str, Entry] = {}
    lacks_raw: list[str] = []
    for entry in rows:
        where, called = entry.where, entry.picture
        name = called if paths is None else paths.get(called, "")
        if paths is None and called.startswith(("http://", "https://")):
            raise LabError(
                f"{path}, {where} names its picture by address: {called}. Download the pictures "
                "and give paths={address: path below the root, ...}."
            )
        name = inside(name, f"{path}, {where}")
        for reason, column in entry.defects:
            told = f"{name or where} ({column})" if column else name or where
            defects.setdefault(reason, []).append(told)
        if not called:
            defects.setdefault("row without a picture's name", []).append(where)
        elif not name:
            defects.setdefault("picture without a path", []).append(called)
        elif name in entries:
            defects.setdefault("picture listed twice", []).append(name)
        elif not entry.long:
            if not entry.defects:
                defects.setdefault("no long caption", []).append(name)
        else:
            entries[name] = entry
            lacks_raw += [] if entry.raw else [name]
    # A table without raw captions at all is a layout; one with holes is damaged.
    if len(lacks_raw) < len(entries):
        without = {name: entries.pop(name) for name in lacks_raw}
        if empty := [name for name, entry in without.items() if not entry.defects]:
            defects["no raw caption"] = empty
    return entries
