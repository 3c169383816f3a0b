"""A folder of records, one JSON file a run: a model on a benchmark at a length.

FOLDER/{model}__{benchmark}__{length}__{hashes}.json   a record, written whole or not at all
FOLDER/features/                             features of pictures, see `picture_features`

What was interrupted goes on: finished runs have their record, and finished pictures their features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longclip_lab.data.benchmarks import differing_facts
from longclip_lab.errors import LabError
from longclip_lab.evaluation.protocols import Task
from longclip_lab.evaluation.records import Record
from longclip_lab.evaluation.scoring import Scorer
from longclip_lab.files import atomic_write, read_json, read_json_object, to_json

FEATURES = "features"
HASHES, DIGITS = ("model_hash", "data_hash"), 8
"""What of a record identifies its model and its data, and how much of it its file is named by."""

CHECKED = {
    "model_hash": "other weights",
    "data_hash": "other pictures or texts",
    "length": "another length",
    "resolution": "another resolution",
    "dtype": "another precision",
    "settings": "other settings",
    "seed": "another seed",
    "partial": "another part of the data",
}
"""Fields that an existing record must share, and what it is called when it does not."""


@dataclass(frozen=True)
class Run:
    """A record, where it is, and how it came there."""

    record: Record
    path: Path
    how: Literal["made", "kept", "replaced"]
    why: str = ""
    """What was wrong with the record that was replaced."""


def run_path(folder: Path, conditions: Mapping[str, Any]) -> Path:
    """Where the record of a run with these `Scorer.conditions` lies.

    Its name holds the first digits of both hashes: two models may share a name and two sets of
    pictures a benchmark, and neither record may take the place of the other.

    >>> facts = {"model": "ViT-B-16/openai", "protocol": "world/kind", "length": 77}
    >>> hashes = {"model_hash": "0f1e2d3c4b5a6978", "data_hash": "8796a5b4c3d2e1f0"}
    >>> run_path(Path("runs"), facts | hashes).as_posix()
    'runs/ViT-B-16-openai__world-kind__77__0f1e2d3c-8796a5b4.json'
    """
    hashes = "-".join(conditions[name][:DIGITS] for name in HASHES)
    return folder / f"{_named(conditions)}__{hashes}.json"


def _named(conditions: Mapping[str, Any]) -> str:
    """Model, benchmark and length: all of a record's name in earlier versions of the lab."""
    model, benchmark = (
        re.sub(r"[^\w.+-]+", "-", conditions[name]) for name in ("model", "protocol")
    )
    while len(model.encode()) > 120:  # a file's name has at most 255 bytes
        model = model[:-1]
    return f"{model}__{benchmark}__{conditions['length']}"


def _found(folder: Path, conditions: Mapping[str, Any]) -> tuple[Path, Record | None]:
    """Where the record of these conditions lies or will lie, and the one that is there."""
    path, earlier = run_path(folder, conditions), folder / f"{_named(conditions)}.json"
    if not path.exists() and earlier.exists():
        record = read_record(earlier)
        if all(getattr(record, name) == conditions[name] for name in HASHES):
            return earlier, record
    record = read_record(path) if path.exists() else None
    others = [name for name in HASHES if record and getattr(record, name) != conditions[name]]
    if others:
        raise LabError(
            f"{path} holds another record than its name says: {CHECKED[others[0]]}. Move it away, "
            "or give another folder."
        )
    return path, record


def run(scorer: Scorer, task: Task, length: int, folder: Path, skip_existing: bool = False) -> Run:
    """Score and write one record; with `skip_existing` only if there is none of the same run.

    A record is of the same run if weights, data, length and everything else that decides a score
    are the same. One of other weights, pictures or texts stays beside the new one; one of the same
    under other settings is replaced, and `Run.why` says which.
    Raises LabError for a file of that name that is no record, or of anything else.
    """
    conditions = scorer.conditions(task, length)
    path, old = _found(folder, conditions)
    why = ""
    if old is not None:
        others = differing_runs(old, conditions)
        if skip_existing and not others:
            return Run(old, path, "kept")
        why = "the one there was of " + ", ".join(others) if others else "asked for again"
    record = scorer.record(task, length)
    atomic_write(path, to_json(record.to_dict(), indent=2) + "\n")
    return Run(record, path, "replaced" if why else "made", why)


def differing_runs(record: Record, conditions: Mapping[str, Any]) -> list[str]:
    """In what a record differs from what would be measured now; [] if it is the same run."""
    now = json.loads(json.dumps({name: conditions[name] for name in CHECKED}))
    names = [what for name, what in CHECKED.items() if getattr(record, name) != now[name]]
    if differing_facts(record.facts, json.loads(json.dumps(conditions["facts"]))):
        names.append("another protocol")
    return names


def read_record(path: Path) -> Record:
    """The record in a file. Raises LabError for a file that holds anything else."""
    try:
        return Record.from_dict(read_json_object(path))
    except LabError as error:
        raise LabError(
            f"{path} is not a record of an evaluation ({error}). Move it away, or give another "
            "folder."
        ) from error


def read_records(folder: str | Path) -> list[Record]:
    """The records in a folder, by file name; files of several, as `--out FILE.json` writes, too.

    Raises LabError for a folder without records and for a JSON file that holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"There is no folder {folder}; expected one that `eval --out` wrote.")
    records = [record for path in sorted(folder.glob("*.json")) for record in _records_of(path)]
    if not records:
        raise LabError(
            f"{folder} holds no records (*.json); write some with `eval --out {folder}`."
        )
    return records


def _records_of(path: Path) -> list[Record]:
    try:
        content = read_json(path)
        values = content.get("records", [content]) if isinstance(content, dict) else content
        if not isinstance(values, list):
            raise LabError("It holds no list of records.")
        return [Record.from_dict(value) for value in values]
    except LabError as error:
        raise LabError(f"{path} is not a record of an evaluation ({error}).") from error
