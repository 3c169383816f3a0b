"""A folder of records, one JSON file a run: a model on a benchmark at a length.

FOLDER/{model}__{benchmark}__{length}.json   a record, written whole or not at all
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
from longclip_lab.files import atomic_write, to_json

FEATURES = "features"

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


def run_path(folder: Path, model: str, benchmark: str, length: int) -> Path:
    """Where the record of a run lies.

    >>> run_path(Path("runs"), "ViT-B-16/openai", "world/kind", 77).as_posix()
    'runs/ViT-B-16-openai__world-kind__77.json'
    """
    names = (re.sub(r"[^\w.+-]+", "-", name) for name in (model, benchmark))
    return folder / f"{'__'.join(names)}__{length}.json"


def run(scorer: Scorer, task: Task, length: int, folder: Path, skip_existing: bool = False) -> Run:
    """Score and write one record; with `skip_existing` only if there is none of the same run.

    A record of the same name is of the same run if weights, data, length and everything else that
    decides a score are the same; another one is replaced, and `Run.why` says what it was of.
    Raises LabError for a file of that name that is no record.
    """
    path = run_path(folder, scorer.clip.name, task.name, length)
    old = read_record(path) if path.exists() else None
    why = "" if old is None else "asked for again"
    if old is not None and skip_existing:
        others = differing_runs(old, scorer.conditions(task, length))
        if not others:
            return Run(old, path, "kept")
        why = "the one there was of " + ", ".join(others)
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
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise LabError("It holds no object.")
        return Record.from_dict(content)
    except (ValueError, TypeError, AttributeError) as error:
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
        content = json.loads(path.read_text(encoding="utf-8"))
        values = content.get("records", [content]) if isinstance(content, dict) else content
        return [Record.from_dict(value) for value in values]
    except (ValueError, TypeError, AttributeError) as error:
        raise LabError(f"{path} is not a record of an evaluation ({error}).") from error
