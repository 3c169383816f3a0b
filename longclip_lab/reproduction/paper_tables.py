"""The papers' tables as data, each with where it stands.

The files in `tables/` hold what is printed, digit for digit; `notes` say what is odd about it.
Figures whose numbers are not printed are here only with what the text says of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from longclip_lab.errors import LabError, suggest
from longclip_lab.files import parse_json

Label = str | int | bool | None


@dataclass(frozen=True)
class PublishedRow:
    """One line: what it is about, and its numbers by column."""

    labels: dict[str, Label]
    values: dict[str, float]


@dataclass(frozen=True)
class PublishedTable:
    """One table of a paper; `name` is what experiments call it, such as "lotlip/table3"."""

    name: str
    paper: str
    table: str
    title: str
    unit: str
    rows: list[PublishedRow]
    notes: list[str]

    @property
    def source(self) -> str:
        """The paper and the table's number there."""
        return f"{self.paper}, {self.table}"

    def value(self, column: str, **labels: Label) -> float:
        """The number under `column` in the one line with these labels (blanks as underscores).

        Raises LabError for a column that the table does not have, and for labels that fit no line
        or lines with different numbers.

        >>> published_table("lotlip/table3").value("ImageNet", corner_tokens=2, mask=True)
        50.34
        """
        wanted = {name.replace("_", " "): label for name, label in labels.items()}
        fitting = [row for row in self.rows if wanted.items() <= row.labels.items()]
        if fitting and column not in fitting[0].values:
            raise LabError(
                f"{self.name} has no column {column!r}. {suggest(column, fitting[0].values)}"
            )
        found = {row.values[column] for row in fitting}
        if len(found) != 1:
            lines = "; ".join(
                ", ".join(f"{k} {v}" for k, v in row.labels.items()) for row in self.rows
            )
            raise LabError(
                f"{self.name}: {len(fitting)} lines have {wanted}, one is needed. The lines: "
                f"{lines}."
            )
        return found.pop()

    def to_frame(self) -> Any:
        """A DataFrame: the labels, then the columns as printed."""
        import pandas as pd

        return pd.DataFrame([{**row.labels, **row.values} for row in self.rows])


@dataclass(frozen=True)
class Statement:
    """A number in a paper's running text, and what it says."""

    name: str
    where: str
    says: str
    value: float


@cache
def published_tables() -> dict[str, PublishedTable]:
    """Every transcribed table by name."""
    tables = [_table(content) for content in _contents() if "rows" in content]
    # By paper, then by number: "lotlip/table10" after "lotlip/table9".
    tables.sort(key=lambda table: (table.name.rstrip("0123456789"), len(table.name), table.name))
    return {table.name: table for table in tables}


def published_table(name: str) -> PublishedTable:
    """One table by name. Raises LabError for an unknown name, with near ones.

    >>> published_table("lotlip/table2").source
    'LoTLIP (Wu et al., NeurIPS 2024), Table 2'
    """
    tables = published_tables()
    if name not in tables:
        raise LabError(f"No table {name!r} is transcribed. {suggest(name, tables)}")
    return tables[name]


@cache
def published_statements() -> dict[str, Statement]:
    """What LoTLIP's text says in numbers, by name."""
    found = [Statement(**one) for content in _contents() for one in content.get("statements", [])]
    return {statement.name: statement for statement in found}


def _contents() -> list[dict[str, Any]]:
    folder = files("longclip_lab.reproduction") / "tables"
    paths = sorted((path for path in folder.iterdir()), key=lambda path: path.name)
    return [
        parse_json(path.read_text("utf-8"), path.name)
        for path in paths
        if path.name.endswith(".json")
    ]


def _table(content: dict[str, Any]) -> PublishedTable:
    return PublishedTable(
        content["name"],
        content["paper"],
        content["table"],
        content["title"],
        content["unit"],
        [
            PublishedRow(
                dict(zip(content["labels"], labels, strict=True)),
                dict(zip(content["columns"], values, strict=True)),
            )
            for labels, values in content["rows"]
        ],
        content["notes"],
    )
