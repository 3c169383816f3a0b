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
    `share-captioner_coco_lcs_sam_1246k_1107.json`. The caption is the first turn whose "from" is
    the model's (`ANSWERERS`), wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longclip_lab.data.tables import Row, read_rows
from longclip_lab.data.usable import EMPTY, caption_defect
from longclip_lab.errors import LabError

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
