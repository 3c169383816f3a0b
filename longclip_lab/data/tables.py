"""Tables of captions as they are published: CSV, TSV, JSON, JSON lines and Parquet, row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longclip_lab.data.captions import read_text
from longclip_lab.errors import LabError

Row = dict[str, Any]

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".jsonlines", ".parquet")
_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
_PARQUET_ROWS = 1024


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a table with where each stands, such as "line 7"; by the file's suffix.

    CSV and TSV are UTF-8 with or without a byte order mark, a header line, quotes where a field
    holds the delimiter or a line break; the delimiter (comma, tab or semicolon) is read off the
    header. JSON is a list of objects, JSONL one object a line. Parquet needs pyarrow.
    Large CSV, JSONL and Parquet files are read piece by piece, JSON as a whole.

    Raises LabError for a file that is missing, empty, of another kind, not UTF-8, whose rows do
    not fit its header, or that ends in an open quote.
    """
    if path.suffix not in SUFFIXES:
        raise LabError(f"{path}: expected a table ({', '.join(SUFFIXES)}), got {path.suffix!r}.")
    if not path.is_file():
        raise LabError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise LabError(f"{path} is empty.")
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".json":
        return _json(path)
    lines = path.suffix in (".jsonl", ".jsonlines")
    return _utf8(path, _json_lines(path) if lines else _delimited(path))


def _utf8(path: Path, rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    where = "its beginning"
    try:
        for where, row in rows:
            yield where, row
    except UnicodeDecodeError as error:
        raise LabError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} some way after "
            f"{where}. Save it as UTF-8."
        ) from None


def _delimited(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        if "\0" in header:
            raise LabError(f"{path} is not a text file; is it compressed, or UTF-16?")
        delimiter = max(_DELIMITERS, key=header.count)
        if delimiter not in header:
            raise LabError(
                f"{path}: the header {header.strip()!r} is one column. Expected columns parted by "
                f"{', '.join(_DELIMITERS.values())}."
            )
        columns = next(csv.reader([header], delimiter=delimiter))
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        last = 1
        try:
            for fields in reader:
                # A quoted text may go over many lines: the row stands where it begins.
                where, last = f"line {last + 1}", reader.line_num + 1
                if not fields:
                    continue
                if len(fields) != len(columns):
                    raise LabError(
                        f"{path}, {where}: {len(fields)} fields for {len(columns)} columns parted "
                        f"by {_DELIMITERS[delimiter]}. A text with the delimiter needs quotes."
                    )
                yield where, dict(zip(columns, fields, strict=True))
        except csv.Error as error:
            raise LabError(
                f"{path}, in the row of line {last + 1}: {error}. Is a quote left open?"
            ) from None


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise LabError(f"{path} is not JSON: {error}. Is the file complete?") from None
    if not isinstance(content, list):
        raise LabError(f"{path} holds a JSON {type(content).__name__}; expected a list of objects.")
    for number, row in enumerate(content):
        yield _object(path, f"entry {number}", row)


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise LabError(f"{path}, line {number} is not JSON: {error.msg}.") from None
            yield _object(path, f"line {number}", row)


def _object(path: Path, where: str, row: Any) -> tuple[str, Row]:
    if not isinstance(row, dict):
        raise LabError(f"{path}, {where}: expected an object, got a {type(row).__name__}.")
    return where, row


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise LabError(
            f"{path} is a Parquet file, which pyarrow reads and which is not installed: "
            "pip install pyarrow, or save the table as CSV."
        ) from None
    try:
        batches = ParquetFile(path).iter_batches(_PARQUET_ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows))
    except ArrowInvalid as error:
        raise LabError(f"{path} is not a Parquet file: {error}") from None
