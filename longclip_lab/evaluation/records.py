"""Records: scores with everything needed to repeat them, and in what two of them differ.

Numbers under one name are often of different pictures, lengths or rules (see `aspects`). Two
records with any difference are not two measurements of the same thing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longclip_lab import __version__
from longclip_lab.data.benchmarks import differing_facts
from longclip_lab.errors import LabError, suggest
from longclip_lab.files import (
    atomic_write,
    checked_fields,
    json_kind,
    parse_json,
    read_json,
    read_json_object,
    readable,
    to_json,
    visible,
)
from longclip_lab.stats import Interval

if TYPE_CHECKING:
    import pandas as pd


# --- Records: scores with everything needed to repeat them ---

DIGITS = 16


@dataclass(frozen=True)
class Record:
    """One model on one benchmark."""

    protocol: str
    """Name of the benchmark, "world/long-retrieval"."""
    model: str
    model_hash: str
    """Of all weights, see `model_hash`."""
    data_hash: str
    """Of the pictures and texts that were scored, see `data_hash`."""
    scores: dict[str, Interval]
    """By name: "i2t R@1", "top-1"; shares from 0 to 1."""
    counts: dict[str, int]
    """How many images, texts and different texts."""
    num_truncated: int
    """Texts that were longer than `length` and lost their end."""
    share_truncated: float
    """The same as a share of the texts."""
    skipped: dict[str, int]
    """What was left out, by reason; the data set's own `skipped` has the names."""
    settings: dict[str, Any]
    """Options of the protocol: rule for ties, bootstrap rounds, templates."""
    source: dict[str, Any]
    """What the data set says of its origin."""
    seed: int
    """Of the bootstrap."""
    device: str
    dtype: str
    seconds: float
    """Encoding and scoring; what benchmarks share is counted where it was done first."""
    commit: str | None = field(default_factory=lambda: commit())
    """Of this library, with "-dirty" if its files were changed; None outside a git checkout."""
    versions: dict[str, str] = field(default_factory=lambda: versions())
    length: int | None = None
    """Tokens that were read of a text at most, both special ones counted; None in records that
    are older than this field, as below."""
    resolution: int | None = None
    """Height of the pictures that the model got, in pixels."""
    partial: bool = False
    """Some of what the protocol promises was missing: no score on this benchmark."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the benchmark's protocol says (`data.benchmarks.Protocol.facts`); {} for own pairs."""
    contamination: dict[str, str] = field(default_factory=dict)
    """Whether the model was trained on these pictures: "state" and "why"; {} where the protocol
    names no training set that has them."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"scores": {name: s.to_dict() for name, s in self.scores.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """The inverse of `to_dict`. Raises LabError for fields that do not fit."""
        if not isinstance(values, dict):
            raise LabError(f"Not a record: a JSON {json_kind(values)}.")
        known = {f.name for f in fields(cls)}
        needed = {f.name for f in fields(cls) if f.default is f.default_factory is MISSING}
        if not needed <= set(values) <= known:
            missing, unknown = sorted(needed - set(values)), sorted(set(values) - known)
            raise LabError(f"Not a record: missing fields {missing}, unknown fields {unknown}.")
        if not isinstance(values["scores"], dict):
            raise LabError("Not a record: its scores have no names.")
        scores = {name: Interval.from_dict(score) for name, score in values["scores"].items()}
        return checked_fields(cls(**(values | {"scores": scores})), "Not a record")


@dataclass(frozen=True)
class Evaluation:
    """The records of one call of `evaluate`."""

    records: list[Record]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, protocol: str) -> Record:
        """The record of a benchmark. Raises LabError for one that was not run."""
        for record in self.records:
            if record.protocol == protocol:
                return record
        names = [record.protocol for record in self.records]
        raise LabError(f"No record of {protocol!r}. {suggest(protocol, names)}")

    def table(self) -> pd.DataFrame:
        """One row a score: model, benchmark, score, percent, low, high, n, truncated (percent)."""
        import pandas as pd

        rows = [
            (
                record.model,
                record.protocol,
                name,
                *(round(100 * share, 1) for share in (score.value, score.low, score.high)),
                score.n,
                round(100 * record.share_truncated, 1),
            )
            for record in self.records
            for name, score in record.scores.items()
        ]
        columns = ["model", "benchmark", "score", "percent", "low", "high", "n", "truncated %"]
        return pd.DataFrame(rows, columns=columns)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """All records as a JSON list; with a path, also written there in one step."""
        text = to_json([record.to_dict() for record in self.records], indent=2) + "\n"
        if path is not None:
            atomic_write(path, text)
        return text

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """The inverse of `to_json`. Raises LabError for anything else."""
        values = parse_json(text, "What should be a JSON list of records")
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise LabError("Expected a JSON list of records.")
        return cls([Record.from_dict(value) for value in values])


def model_hash(model: torch.nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 of names, types, shapes and bytes of all weights.

    >>> model_hash(torch.nn.Identity())
    'e3b0c44298fc1c14'
    """
    # Names, types and shapes too: the same bytes under another name are another model.
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # As bytes: bfloat16 has no type in NumPy.
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]


def data_hash(images: Any, texts: list[str], source: dict[str, Any]) -> str:
    """First 16 digits of the SHA-256 of what was scored: pictures, texts, stated source.

    Picture files count by name, wherever their folder lies; the source has their own hash.
    """
    # Sorted, so that a dictionary's order is no part of what was scored.
    digest = hashlib.sha256(json.dumps([texts, source], sort_keys=True, default=str).encode())
    if isinstance(images, np.ndarray | torch.Tensor):
        digest.update(np.ascontiguousarray(images).data)
    else:
        for image in images:
            # A file's content is in `source["hash"]`; its folder is the machine's, not the data's.
            name = Path(image).name if isinstance(image, str | os.PathLike) else image.tobytes()
            digest.update(readable(name).encode() if isinstance(name, str) else name)
    return digest.hexdigest()[:DIGITS]


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Commit of the checkout that this library runs from, or None if it runs from none."""
    package = Path(__file__).parents[1]
    try:
        # Installed somewhere below another project's checkout, the package is not its file.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        return _git(package, "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of this library and of torch."""
    return {"longclip_lab": __version__, "torch": torch.__version__}


# --- Records read back: one file, or a folder of them ---


def read_record(path: Path) -> Record:
    """The record in a file. Raises LabError for a file that holds anything else."""
    try:
        return _whole(read_json_object(path))
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
    records = [record for path in visible(folder, "*.json") for record in _records_of(path)]
    if not records:
        raise LabError(
            f"{folder} holds no records (*.json); write some with `eval --out {folder}`."
        )
    return records


def _whole(values: Any) -> Record:
    """A record that can be compared with others. Raises LabError for anything else."""
    # Fields of the right types may still state what no other record can be compared with.
    record = Record.from_dict(values)
    aspects(record)
    return record


def _records_of(path: Path) -> list[Record]:
    try:
        content = read_json(path)
        # `eval --out DIR` writes one record a file, `--out FILE.json` all of a call.
        values = content.get("records", [content]) if isinstance(content, dict) else content
        if not isinstance(values, list):
            raise LabError("It holds no list of records.")
        return [_whole(value) for value in values]
    except LabError as error:
        raise LabError(f"{path} is not a record of an evaluation ({error}).") from error


# --- Which conditions a score was measured under, and in what two scores differ ---

UNKNOWN = None
"""The value of an aspect that is not stated."""


def aspects(record: Record) -> dict[str, Any]:
    """What a score depends on apart from the weights, by name; None for what is not stated.

    "data" is the hash of pictures and texts: it tells sets apart that agree in everything named.
    Raises LabError for a record that states anything but a text or number.
    """
    try:
        found = _stated(record)
        # A table counts these values, for which each needs a hash: a list has none.
        hash(tuple(found.values()))
    except (TypeError, AttributeError, LookupError) as error:
        raise LabError(
            f"What {record.model} was measured under on {record.protocol} cannot be compared: "
            f"{error}."
        ) from None
    return found


def _stated(record: Record) -> dict[str, Any]:
    facts = record.facts
    return {
        "benchmark": record.protocol,
        "split": facts.get("split", record.source.get("split", UNKNOWN)),
        "pictures": record.counts.get("images"),
        "texts": record.counts.get("texts"),
        "text field": facts.get("text_field", UNKNOWN),
        "text processing": facts.get("text_processing", UNKNOWN),
        "words left out": record.source.get("words", {}).get("left_out", 0),
        "templates": _templates(record.settings.get("templates")),
        "length": record.length,
        "resolution": record.resolution,
        "dtype": record.dtype,
        "tie": record.settings.get("tie"),
        "similarity": record.settings.get("similarity", "pooled"),
        "partial": record.partial,
        "data": record.data_hash,
    }


def _templates(templates: list[str] | None) -> str | None:
    return f"{len(templates)}, from {templates[0]!r}" if templates else UNKNOWN


def comparable(one: Record, other: Record) -> list[str]:
    """Every difference between the conditions of two records, by name; [] if there is none.

    Whatever two protocols say differently comes first, then `aspects`; the data's hash counts only
    where nothing else tells the data apart.
    """
    # Records of your own pairs have no protocol: their aspects alone are compared.
    facts = differing_facts(one.facts, other.facts) if one.facts and other.facts else []
    named = {difference.split(":")[0] for difference in facts}
    mine, theirs = (
        {**aspects(record), "image reading": record.settings.get("images")}
        for record in (one, other)
    )
    found = [
        f"{name}: {in_words(mine[name])} against {in_words(theirs[name])}"
        for name in differing(mine, theirs)
        if name not in named and not (name == "data" and facts)
    ]
    return facts + found


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the aspects that two scores do not share; one that is not stated is not shared."""
    names = [name for name in mine if mine[name] != theirs.get(name)]
    # If any of these differs, so do the hashes: naming them as well would say nothing more.
    of_data = {"pictures", "texts", "words left out", "partial", "benchmark", "templates"}
    return [name for name in names if name != "data" or not of_data & set(names)]


def in_words(value: Any) -> str:
    """The value of an aspect in words."""
    if value is UNKNOWN:
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
