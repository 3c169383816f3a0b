"""`inspect`: format, architecture, positions, sizes of a checkpoint.

T old positions, L positions of the table, W width.

What was verified on each is not written here: tests record it, see `compatibility` in
tests/models/conftest.py, and `python book/update_formats.py` makes the table of what they recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from longclip_lab.errors import LabError
from longclip_lab.models.checkpoint import (
    Checkpoint,
    is_buffer,
    not_finite,
    not_floats,
    read_checkpoint,
    sha256,
)
from longclip_lab.models.formats import contents
from longclip_lab.models.formats.contents import (
    Explained,
    explain_folder,
    explain_weights,
    pipeline_parts,
    read_folder,
)
from longclip_lab.models.formats.openai import RESIDUAL
from longclip_lab.models.kps import stretch_positions, stretched_length

# --- What a table of text positions shows of how it came to be ---

ROUNDING = 2e-3
"""Half precision rounds the rows of CLIP's tables by up to about a thousandth of their largest."""
_SHORT, _RATIOS, _USUAL = 77, range(2, 9), (20, 4)


def candidates(length: int) -> list[tuple[int, int]]:
    """Keep and ratio that stretch OpenAI's 77 positions to `length`, Long-CLIP's own first.

    >>> candidates(248)[:2]
    [(20, 4), (58, 10)]
    """
    found = [
        (keep, ratio)
        for ratio in (*_RATIOS, 10)
        for keep in range(_SHORT - 1)
        if stretched_length(_SHORT, keep, ratio) == length
    ]
    return sorted(found, key=lambda pair: pair != _USUAL)


def off_the_line(table_LW: torch.Tensor, keep: int, ratio: int) -> float:
    """How far a table is from being stretched: the largest error, relative to the largest value.

    The old table is read off at every `ratio`-th row after `keep` and stretched again.
    """
    table_LW = table_LW.float()
    old_TW = torch.cat([table_LW[:keep], table_LW[keep::ratio]])
    again_LW = stretch_positions(old_TW, keep, ratio)[: len(table_LW)]
    return float((table_LW - again_LW).abs().max() / table_LW.abs().max().clamp_min(1e-12))


def how_stretched(table_LW: torch.Tensor) -> tuple[int, int] | None:
    """Keep and ratio if the table is still exactly the stretching of a shorter one."""
    for keep, ratio in candidates(len(table_LW)):
        if off_the_line(table_LW, keep, ratio) < ROUNDING:
            return keep, ratio
    return None


def explain_table(table_LW: torch.Tensor) -> dict[str, Any]:
    """What can be seen of one table: length, kept, stretched, method and sentences on why."""
    length = len(table_LW)
    facts: dict[str, Any] = {"length": length, "kept": length, "stretched": 0}
    found = how_stretched(table_LW) if length > _SHORT else None
    if found:
        keep, ratio = found
        return facts | {
            "kept": keep,
            "stretched": length - keep,
            "method": "kps",
            "ratio": ratio,
            "seen": [
                f"rows {keep} to {length - 1} lie on straight lines between every {ratio}th of "
                "them: knowledge-preserved stretching, not trained since"
            ],
        }
    if length > _SHORT and candidates(length):
        return facts | {
            "method": "trained, or not stretched",
            "seen": [
                f"{length} positions are what Long-CLIP's stretching of {_SHORT} gives, but the "
                "rows do not lie on straight lines: trained since, or made otherwise"
            ],
        }
    return facts | {"method": "none seen", "seen": []}


def explain_longclip(
    used_first_LW: torch.Tensor, used_later_LW: torch.Tensor, keep: int = _USUAL[0]
) -> dict[str, Any]:
    """What can be seen of Long-CLIP's two tables.

    The first `keep` rows of one and the later rows of the other are read.
    """
    if used_first_LW.shape != used_later_LW.shape or len(used_first_LW) <= keep:
        return {
            **{"length": len(used_first_LW), "kept": len(used_first_LW), "stretched": 0},
            "method": "two tables that are not Long-CLIP's",
            "seen": [
                f"positional_embedding has {list(used_first_LW.shape)}, positional_embedding_res "
                f"{list(used_later_LW.shape)}: expected two of one size, more than {keep} rows"
            ],
        }
    first_LW, later_LW = used_first_LW.float(), used_later_LW.float()
    found = how_stretched(first_LW)
    seen = [
        f"positional_embedding: {len(first_LW)} rows, 0 to {keep - 1} are read",
        "they are "
        + (
            f"still the stretching of {_SHORT} positions (keep {found[0]}, ratio {found[1]})"
            if found
            else "not the stretching of a shorter table, or were trained"
        ),
    ]
    moved_L = (later_LW - first_LW).norm(dim=1)
    step = float((first_LW[1:] - first_LW[:-1]).norm(dim=1).median())
    share = float(moved_L[keep:].median()) / max(step, 1e-12)
    seen += [
        f"positional_embedding_res: rows {keep} to {len(later_LW) - 1} are read",
        "they equal the other table's: stretched, not trained"
        if share < ROUNDING
        else f"they differ from the other table's by {share:.2g} steps between neighbours (median):"
        " trained",
    ]
    return {
        "length": len(first_LW),
        "kept": keep,
        "stretched": len(first_LW) - keep,
        "method": "kps" if found else "two tables",
        **({"ratio": found[1]} if found else {}),
        "seen": seen,
    }


def compare_with(table_LW: torch.Tensor, original_TW: torch.Tensor, keep: int, ratio: int) -> str:
    """Whether the kept rows, and the knots of the others, are those of an original table."""
    if table_LW.ndim != 2 or original_TW.ndim != 2:
        return f"tables of {list(table_LW.shape)} and {list(original_TW.shape)} are no positions"
    table_LW, original_TW = table_LW.float(), original_TW.float()
    if table_LW.shape[1] != original_TW.shape[1]:
        return f"the original's rows are {original_TW.shape[1]} wide, these {table_LW.shape[1]}"
    expected_LW = stretch_positions(original_TW, keep, ratio)
    rows = min(len(expected_LW), len(table_LW))
    largest = original_TW.abs().max()
    errors_L = (table_LW[:rows] - expected_LW[:rows]).abs().amax(dim=1) / largest
    words = []
    if len(errors_L[:keep]):
        kept = float(errors_L[:keep].max())
        off = f"off the original's by {kept:.2g}"
        words.append(f"the first {keep} rows are " + ("the original's" if kept < ROUNDING else off))
    if len(errors_L[keep:]):
        later = float(errors_L[keep:].max())
        off = f"off its stretching by {ratio} by up to {later:.2g}"
        words.append(
            "the others are " + (f"its stretching by {ratio}" if later < ROUNDING else off)
        )
    return "; ".join(words) + " (of the largest value)"


# --- The systems whose weights the lab takes or gives: one entry each, the rows of the docs' ---


@dataclass(frozen=True)
class System:
    """One system's weights, and through which doors they go.

    At least one of `load` and `export` is given. `waits_for` names the real weights that nobody
    has put through the door yet.
    """

    title: str
    load: str | None
    """The call that takes such weights in."""
    export: str | None
    """The call that gives such weights out."""
    waits_for: str

    @property
    def directions(self) -> tuple[str, ...]:
        """ "in", "out" or both: every one needs a test that records a difference."""
        doors = {"in": self.load, "out": self.export}
        return tuple(name for name, call in doors.items() if call is not None)


SYSTEMS: dict[str, System] = {
    "openai": System(
        "OpenAI CLIP, `.pt`",
        "load(FILE)",
        'export(clip, FILE, "openai")',
        "RN50 to RN50x64, ViT-B/32 to ViT-L/14@336px as OpenAI released them",
    ),
    "longclip": System(
        "Long-CLIP, `.pt`",
        "load(FILE)",
        'export(clip, FILE, "longclip")',
        "longclip-B.pt, longclip-L.pt, the 336-pixel and B/32 variants",
    ),
    "open_clip": System(
        "open_clip: its names with a file of weights, and folders in its layout",
        "load(NAME, pretrained=FILE), load(FOLDER)",
        'export(clip, FOLDER, "open_clip")',
        "tags and hub ids, which need a network",
    ),
    "siglip": System(
        "SigLIP through open_clip",
        'load("ViT-B-16-SigLIP", pretrained="webli"), load(FOLDER)',
        'export(clip, FOLDER, "open_clip")',
        "Google's weights and their tokenizers, which need a network",
    ),
    "transformers": System(
        "transformers' `CLIPModel`",
        "load(FOLDER), load(HUB_ID)",
        'export(clip, FOLDER, "transformers")',
        "openai/clip-vit-base-patch32 to -large-patch14-336, conversions of Long-CLIP",
    ),
    "transformers-text": System(
        "transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`",
        "models.load_text_tower(FOLDER)",
        'export(tower, FOLDER, "transformers")',
        "text encoders on the hub",
    ),
    "diffusers": System(
        "the text encoders of diffusers' pipelines",
        "models.load_text_tower(PIPELINE)",
        'export(clip, FOLDER, "diffusers")',
        "Stable Diffusion 1.5, 2.1 and XL, FLUX",
    ),
    "declip": System(
        "DeCLIP, training states of its release",
        "load(FILE)",
        None,
        "the ViT-B/32 states of Sense-GVT/DeCLIP (88M and YFCC)",
    ),
    "align": System(
        "ALIGN through transformers (adapter)",
        "load(FOLDER)",
        None,
        "kakaobrain/align-base",
    ),
    "blip": System(
        "BLIP, the head for contrast, its own files and transformers' folders (adapter)",
        "load(FILE), load(FOLDER)",
        None,
        "model_base_retrieval_coco.pth and its kin, Salesforce/blip-itm-base-coco",
    ),
    "ptp-blip": System(
        "PTP-BLIP, which has BLIP's layout (adapter)",
        "load(FILE)",
        None,
        "Pretrain_concated_pred_4m.pth, coco_retrieval_ft_4m.pth of sail-sg/ptp",
    ),
    "x-vlm": System(
        "X-VLM with a Swin, the unimodal heads (adapter)",
        "load(FILE)",
        None,
        "4m_base_model_state_step_199999.th, the 16M and retrieval states of zengyan-97/X-VLM",
    ),
    "x2-vlm": System(
        "X2-VLM with a BEiT-2, the unimodal heads (adapter)",
        "load(FILE)",
        None,
        "the base and large states of zengyan-97/X2-VLM",
    ),
}
"""By the name under which tests record them."""


# --- `inspect`: what a checkpoint is, without building its model ---

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
        dtypes=contents.count_dtypes(checkpoint.weights),
        parameters=contents.count_parameters(checkpoint.weights),
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
    explain = explain_table if len(tables) == 1 else explain_longclip
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
    sentence = compare_with(*pair, keep, ratio)
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
