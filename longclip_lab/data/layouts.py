"""The published layouts of long captions, each read to the same entries.

dreamlip: DreamLIP's long captions of CC3M, CC12M and YFCC15M, which LoTLIP trains with as well.
    `cc3m_3long_3short_1raw_captions_url.csv` (or the same columns as Parquet, JSON or JSONL):
    "Image Path", "raw_caption", and for InstructBLIP (IB), ShareGPT4V (SV) and LLaVA (LLA)
    "short.._captions" and "long.._captions". As published, "Image Path" is the picture's address.
lotlip: LoTLIP's long captions of LAION and COYO (Recap-Long-Laion, Recap-Long-Coyo),
    `laion_3long_captions.csv`: the long captions of the same three, without short ones. Their
    header was not at hand when this was written: columns are found by DreamLIP's names, or given.
sharegpt4v: a JSON list of {"id", "image": "sam/images/sa_1.jpg", "conversations": [{"from":
    "human", "value": ..}, {"from": "gpt", "value": the long caption}]}, such as
    `share-captioner_coco_lcs_sam_1246k_1107.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longclip_lab.data.tables import Row, read_rows
from longclip_lab.data.usable import check_text
from longclip_lab.errors import LabError

LAYOUTS = ("dreamlip", "lotlip", "sharegpt4v")
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
    """

    where: str
    picture: str
    raw: str
    long: dict[str, str]
    short: list[str]


def read_columns(path: Path, columns: Columns) -> Iterator[Entry]:
    """The entries of a table with one column a caption.

    Raises LabError for a table without pictures or without any long captions.
    """
    for number, (where, row) in enumerate(read_rows(path)):
        if number == 0:
            columns = _present(path, row, columns)
        yield Entry(
            where,
            _text(path, where, row, columns.image),
            _text(path, where, row, columns.raw),
            _filled(path, where, row, columns.long),
            list(_filled(path, where, row, columns.short).values()),
        )


def read_conversations(path: Path) -> Iterator[Entry]:
    """The entries of ShareGPT4V's JSON list; there are no raw captions.

    Raises LabError for an entry of another form.
    """
    for where, row in read_rows(path):
        turns = row.get("conversations")
        answer: Any = turns[1] if isinstance(turns, list) and len(turns) > 1 else None
        if not isinstance(answer, dict) or "image" not in row or "value" not in answer:
            raise LabError(
                f'{path}, {where}: expected {{"image": "a.jpg", "conversations": [question, '
                f'{{"value": the long caption}}]}}, got the keys {", ".join(map(repr, row))}.'
            )
        long = _text(path, where, answer, "value")
        picture = _text(path, where, row, "image")
        yield Entry(where, picture, "", {"ShareGPT4V": long} if long else {}, [])


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


def _filled(path: Path, where: str, row: Row, names: Mapping[str, str]) -> dict[str, str]:
    texts = {who: _text(path, where, row, name) for who, name in names.items()}
    return {who: text for who, text in texts.items() if text}


def _text(path: Path, where: str, row: Row, name: str) -> str:
    value = row.get(name)
    # Shards made from these tables keep each caption as a list of one.
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise LabError(f"{path}, {where}: expected a text under {name!r}, got {value!r}.")
    check_text(value, f"{path}, {where}")
    return value.strip()
