"""Tables of captions as they are published: CSV, TSV, JSON, JSON lines and Parquet, row by row."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError
from longclip_lab.files import json_kind, parse_json, read_json_list, read_lines

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
