"""`inspect`: what a checkpoint is, without building its model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from longclip_lab.errors import LabError
from longclip_lab.models.checkpoints import Checkpoint, read_checkpoint, sha256
from longclip_lab.models.filling import is_buffer, not_finite, not_floats
from longclip_lab.models.formats.openai_layout import RESIDUAL
from longclip_lab.models.inspection import positions, towers
from longclip_lab.models.inspection.folders import explain_folder, pipeline_parts, read_folder
from longclip_lab.models.inspection.formats import Explained, explain_weights

_TABLES = (
    "positional_embedding",
    "text.positional_embedding",
    "encode_text.positional_embedding",
    "text_model.embeddings.position_embedding.weight",
    "embeddings.position_embedding.weight",
    "text_model.embeddings.position_embeddings.weight",
    "text.transformer.embeddings.position_embeddings.weight",
    "text_encoder.embeddings.position_embeddings.weight",
    "text_encoder.bert.embeddings.position_embeddings.weight",
)
_SHOWN = 8


@dataclass
class Inspection:
    """What a file or folder of weights is; `print` it, or take `to_dict()`."""

    path: str
    format: str
    opened_by: str | None
    """The call that opens it; None if the lab does not."""
    container: str
    architecture: dict[str, dict[str, Any]]
    embed_dim: int | None
    context_length: int | None
    image_size: int | None
    positions: dict[str, Any]
    """length, kept, stretched, method and what of it was `seen`."""
    dtypes: dict[str, int]
    """Values by type."""
    parameters: dict[str, int]
    """Values by tower: image, text, other, total."""
    compared: bool
    """Whether the architecture is known; if not, nothing can be said to be missing."""
    missing: list[str]
    """Weights that the architecture has and the file has not."""
    unexpected: list[str]
    """Weights that the file has and the architecture has not."""
    files: dict[str, dict[str, Any]]
    """By name: bytes and sha256."""
    notes: list[str] = field(default_factory=list)
    parts: dict[str, Inspection] = field(default_factory=dict)
    """The text encoders of a diffusers pipeline."""

    @property
    def sha256(self) -> str | None:
        """The digest of a single file; None for a folder of several, see `files`."""
        return next(iter(self.files.values()))["sha256"] if len(self.files) == 1 else None

    @property
    def num_bytes(self) -> int:
        """All files of weights together."""
        return sum(facts["bytes"] for facts in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: every field."""
        return asdict(self)

    def rows(self) -> Iterator[tuple[str, str]]:
        """What the table has: a label and a text each."""
        yield "format", self.format
        yield "opened by", self.opened_by or "nothing here"
        yield "container", self.container
        for tower, facts in self.architecture.items():
            yield tower, ", ".join(f"{name} {value}" for name, value in facts.items())
        for name in ("embed_dim", "context_length", "image_size"):
            if (value := getattr(self, name)) is not None:
                yield name.replace("_", " "), str(value)
        if self.positions:
            yield "positions", _words(self.positions)
            yield from (("", sentence) for sentence in self.positions["seen"])
        if self.dtypes:
            yield "types", ", ".join(f"{name} {count:,}" for name, count in self.dtypes.items())
            yield "parameters", ", ".join(f"{n} {c:,}" for n, c in self.parameters.items() if c)
        if self.compared:
            yield "missing", _some(self.missing)
            yield "unexpected", _some(self.unexpected)
        elif not self.parts:
            yield "missing", "cannot be told: the architecture is not known, or does not fit"
        for name, facts in self.files.items():
            yield name, f"{facts['bytes']:,} bytes, sha256 {facts['sha256'] or 'not computed'}"
        yield from (("", note) for note in self.notes)

    def table(self) -> str:
        """Two columns of text, the parts of a pipeline below."""
        rows = list(self.rows())
        width = max(len(label) for label, _ in rows)
        lines = [self.path, *(f"  {label:{width}}  {text}".rstrip() for label, text in rows)]
        lines += [f"\n{name}: {part.table()}" for name, part in self.parts.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def inspect(
    path: str | os.PathLike[str],
    original: str | os.PathLike[str] | None = None,
    digest: bool = True,
) -> Inspection:
    """Explain a checkpoint file or folder without building its model or running any code in it.

    Names and shapes are read from the headers, the values of the tables of positions alone. What
    is missing or unexpected is told by comparison with the architecture that the shapes (or the
    config beside them) say, built without memory on the meta device. Of unknown formats the tree
    of names is listed among the notes.

    With `original`, a file or folder of the CLIP that a longer one was made from, the positions
    are compared with its. `digest` computes the files' sha256 and looks for values that are not
    finite, for which they are read.

    Raises LabError if there is nothing, or nothing that can be read, at `path`.
    """
    path = Path(path)
    if path.is_dir() and (encoders := pipeline_parts(path)):
        return _pipeline(path, encoders, digest)
    if path.is_dir():
        checkpoint, files = read_folder(path)
        explained = explain_folder(path, checkpoint)
    elif path.is_file():
        checkpoint, files = read_checkpoint(path), [path]
        explained = explain_weights(checkpoint)
    else:
        raise LabError(f"There is no file or folder {path}.")
    return _inspection(path, checkpoint, explained, files, original, digest)


def _inspection(
    path: Path,
    checkpoint: Checkpoint,
    explained: Explained,
    files: list[Path],
    original: str | os.PathLike[str] | None,
    digest: bool,
) -> Inspection:
    architecture = explained.architecture
    seen = _positions(checkpoint)
    notes = list(explained.notes)
    if original is not None:
        sentence = _compared(checkpoint, seen, Path(original))
        seen.get("seen", notes).append(sentence)
    if checkpoint.unwrapped:
        notes.append(f"unwrapped: {', '.join(checkpoint.unwrapped)}")
    if checkpoint.beside:
        notes.append(f"a training state, beside the weights: {_some(checkpoint.beside)}")
    notes += _bad_numbers(checkpoint.weights, digest)
    text, image = architecture.get("text", {}), architecture.get("image", {})
    return Inspection(
        path=str(path),
        format=explained.format,
        opened_by=explained.call,
        container=checkpoint.container,
        architecture=architecture,
        embed_dim=explained.embed_dim,
        context_length=text.get("context_length", seen.get("length")),
        image_size=image.get("image_size"),
        positions=seen,
        dtypes=towers.count_dtypes(checkpoint.weights),
        parameters=towers.count_parameters(checkpoint.weights),
        compared=explained.compared,
        missing=explained.missing,
        unexpected=explained.unexpected,
        files=_facts(files, digest),
        notes=notes,
    )


def _pipeline(folder: Path, encoders: dict[str, Path], digest: bool) -> Inspection:
    parts = {name: inspect(part, digest=digest) for name, part in encoders.items()}
    return Inspection(
        path=str(folder),
        format="diffusers pipeline",
        opened_by="models.load_text_tower(PIPELINE)",
        container="folder",
        architecture={},
        embed_dim=None,
        context_length=max((part.context_length or 0) for part in parts.values()) or None,
        image_size=None,
        positions={},
        dtypes={},
        parameters={},
        compared=False,
        missing=[],
        unexpected=[],
        files={},
        parts=parts,
    )


def _table_name(checkpoint: Checkpoint) -> str | None:
    return next((name for name in _TABLES if name in checkpoint.weights), None)


def _positions(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the text tower's table of positions shows; empty if none is known by name."""
    name = _table_name(checkpoint)
    if name is None:
        return {}
    tables = [checkpoint.weights[n] for n in (name, RESIDUAL) if n in checkpoint.weights]
    if any(map(not_floats, tables)) or tables[0].ndim != 2 or not len(tables[0]):
        return {}  # the notes say what it is
    explain = positions.explain_table if len(tables) == 1 else positions.explain_longclip
    return explain(*tables)


def _bad_numbers(weights: dict[str, torch.Tensor], read: bool) -> list[str]:
    """Notes on weights that `load` refuses: no floating point numbers, or (where the values are
    `read`) not finite ones."""
    notes = []
    kinds = {n: k for n, t in weights.items() if not is_buffer(n) and (k := not_floats(t))}
    if kinds:
        notes.append(
            "no floating point numbers, which load refuses: "
            f"{', '.join(sorted({*kinds.values()}))} in {len(kinds)} weights: {_some(list(kinds))}"
        )
    bad = not_finite(weights) if read else {}
    if bad:
        told = [f"{name} ({count} values)" for name, count in bad.items()]
        notes.append(f"not finite, which load refuses: {_some(told)}")
    return notes


def _compared(checkpoint: Checkpoint, seen: dict[str, Any], original: Path) -> str:
    """One sentence on the positions beside those of the CLIP they are said to come from."""
    source = read_folder(original)[0] if original.is_dir() else read_checkpoint(original)
    names = _table_name(checkpoint), _table_name(source)
    if None in names:
        which = "this" if names[0] is None else "the original"
        raise LabError(f"No table of positions that is known by name is in {which}.")
    pair = checkpoint.weights[names[0]], source.weights[names[1]]
    if kinds := [kind for table in pair if (kind := not_floats(table))]:
        raise LabError(f"Positions cannot be compared that are {kinds[0]} numbers.")
    ratio = int(seen.get("ratio", 4))
    keep = seen["kept"] if seen.get("stretched") else 20
    sentence = positions.compare_with(*pair, keep, ratio)
    return f"beside {original.name}: {sentence}"


def _facts(files: list[Path], digest: bool) -> dict[str, dict[str, Any]]:
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file) if digest else None}
        for file in files
    }


def _words(facts: dict[str, Any]) -> str:
    ratio = f", ratio {facts['ratio']}" if "ratio" in facts else ""
    kept = f"{facts['kept']} kept, {facts['stretched']} stretched"
    return f"{facts['length']}: {kept}, method {facts['method']}{ratio}"


def _some(names: list[str]) -> str:
    """The first few names and how many there are."""
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
