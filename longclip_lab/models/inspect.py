"""`inspect`: what a checkpoint is, without building its model or running any code in it.

Files are explained by the readers that `load` opens them with, on the meta device: names and
shapes are compared with the architecture that they say, and no memory is taken.

T old positions, L positions of the table, W width.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers
import yaml

from longclip_lab.errors import LabError
from longclip_lab.models.adapters import RELEASES, rebuild, which_release
from longclip_lab.models.build import build_model
from longclip_lab.models.checkpoint import (
    Checkpoint,
    Weights,
    is_buffer,
    not_finite,
    not_floats,
    read_checkpoint,
    read_checkpoints,
    sha256,
)
from longclip_lab.models.formats.hf import read_object
from longclip_lab.models.formats.openai import RESIDUAL
from longclip_lab.models.kps import stretch_positions, stretched_length
from longclip_lab.models.load import CONFIG, OPEN_CLIP_CONFIG, WEIGHTS, find_reader

# --- The systems whose weights the lab takes or gives: the rows of the book's table ---


@dataclass(frozen=True)
class System:
    """One system's weights, and through which doors they go; at least one is given."""

    title: str
    load: str | None
    """The call that takes such weights in."""
    export: str | None
    """The call that gives such weights out."""
    waits_for: str
    """The real weights that nobody has put through the door yet."""

    @property
    def directions(self) -> tuple[str, ...]:
        """ "in", "out" or both: every one needs a test that records a difference."""
        doors = {"in": self.load, "out": self.export}
        return tuple(name for name, call in doors.items() if call is not None)


@cache
def systems() -> dict[str, System]:
    """By the name under which tests record them; `python book/update_formats.py` makes the table.

    What was verified on each is recorded by `compatibility` in tests/models/conftest.py.
    """
    content = yaml.safe_load(Path(__file__).with_name("systems.yaml").read_text(encoding="utf-8"))
    return {name: System(**facts) for name, facts in content.items()}


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


def how_stretched(table_LW: torch.Tensor) -> tuple[int, int] | None:
    """Keep and ratio if the table is still exactly the stretching of a shorter one."""
    table_LW = table_LW.float()
    for keep, ratio in candidates(len(table_LW)):
        # The old table stands at every `ratio`-th row after `keep`: read off and stretched again.
        old_TW = torch.cat([table_LW[:keep], table_LW[keep::ratio]])
        again_LW = stretch_positions(old_TW, keep, ratio)[: len(table_LW)]
        off = (table_LW - again_LW).abs().max() / table_LW.abs().max().clamp_min(1e-12)
        if float(off) < ROUNDING:
            return keep, ratio
    return None


def explain_table(table_LW: torch.Tensor) -> dict[str, Any]:
    """What can be seen of one table: length, kept, stretched, method and sentences on why."""
    length = len(table_LW)
    facts = {"length": length, "kept": length, "stretched": 0, "method": "none seen", "seen": []}
    if length <= _SHORT or not candidates(length):
        return facts
    if found := how_stretched(table_LW):
        keep, ratio = found
        seen = (
            f"rows {keep} to {length - 1} lie on straight lines between every {ratio}th of them: "
            "knowledge-preserved stretching, not trained since"
        )
        return facts | {
            **{"kept": keep, "stretched": length - keep, "method": "kps", "ratio": ratio},
            "seen": [seen],
        }
    seen = (
        f"{length} positions are what Long-CLIP's stretching of {_SHORT} gives, but the rows do "
        "not lie on straight lines: trained since, or made otherwise"
    )
    return facts | {"method": "trained, or not stretched", "seen": [seen]}


def explain_longclip(
    used_first_LW: torch.Tensor, used_later_LW: torch.Tensor, keep: int = _USUAL[0]
) -> dict[str, Any]:
    """What can be seen of Long-CLIP's two tables.

    The first `keep` rows of one and the later rows of the other are read.
    """
    length = len(used_first_LW)
    if used_first_LW.shape != used_later_LW.shape or length <= keep:
        seen = (
            f"positional_embedding has {list(used_first_LW.shape)}, positional_embedding_res "
            f"{list(used_later_LW.shape)}: expected two of one size, more than {keep} rows"
        )
        method = "two tables that are not Long-CLIP's"
        return {"length": length, "kept": length, "stretched": 0, "method": method, "seen": [seen]}
    first_LW, later_LW = used_first_LW.float(), used_later_LW.float()
    found = how_stretched(first_LW)
    made = "not the stretching of a shorter table, or were trained"
    if found:
        made = f"still the stretching of {_SHORT} positions (keep {found[0]}, ratio {found[1]})"
    # How far training moved the later rows, in units of the distance between neighbours.
    moved_L = (later_LW - first_LW).norm(dim=1)
    step = float((first_LW[1:] - first_LW[:-1]).norm(dim=1).median())
    share = float(moved_L[keep:].median()) / max(step, 1e-12)
    trained = f"differ from the other table's by {share:.2g} steps between neighbours (median)"
    return {
        **{"length": length, "kept": keep, "stretched": length - keep},
        "method": "kps" if found else "two tables",
        **({"ratio": found[1]} if found else {}),
        "seen": [
            f"positional_embedding: {length} rows, 0 to {keep - 1} are read",
            f"they are {made}",
            f"positional_embedding_res: rows {keep} to {length - 1} are read",
            "they equal the other table's: stretched, not trained"
            if share < ROUNDING
            else f"they {trained}: trained",
        ],
    }


def compare_with(table_LW: torch.Tensor, original_TW: torch.Tensor, keep: int, ratio: int) -> str:
    """Whether the kept rows, and the knots of the others, are those of an original table."""
    if table_LW.ndim != 2 or original_TW.ndim != 2:
        return f"tables of {list(table_LW.shape)} and {list(original_TW.shape)} are no positions"
    table_LW, original_TW = table_LW.float(), original_TW.float()
    if table_LW.shape[1] != original_TW.shape[1]:
        return f"the original's rows are {original_TW.shape[1]} wide, these {table_LW.shape[1]}"
    # Compared row by row: fine-tuning moves the stretched rows and leaves the kept ones.
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


# --- Architectures told from configs, and to which tower a weight belongs from its name ---

_IMAGE = re.compile(
    r"(visual|vision_model|vision_encoder|visual_encoder|visual_projection|vision_proj)\b"
)
_TEXT = re.compile(
    r"(text|text_model|text_encoder|text_projection|text_proj|encode_text|transformer"
    r"|token_embedding|positional_embedding|positional_embedding_res|ln_final|embeddings"
    r"|encoder|final_layer_norm)\b"
)
_CONFIG_NAMES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "patch_size": "patch",
    "image_size": "image_size",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocabulary",
    "hidden_act": "activation",
}


def tower_of(name: str) -> str:
    """ "image", "text" or "other" (temperatures, heads, queues, momentum copies).

    >>> [tower_of(name) for name in ("visual.proj", "ln_final.bias", "visual_encoder_m.norm.bias")]
    ['image', 'text', 'other']
    """
    if _IMAGE.match(name):
        return "image"
    return "text" if _TEXT.match(name) else "other"


def count_parameters(tensors: Weights) -> dict[str, int]:
    """Values by tower; indices, counters and masks are no parameters."""
    counts = {"image": 0, "text": 0, "other": 0}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not name.endswith("attn_mask"):
            counts[tower_of(name)] += math.prod(tensor.shape)
    return counts | {"total": sum(counts.values())}


def count_dtypes(tensors: Weights) -> dict[str, int]:
    """Values by type, most first."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += math.prod(tensor.shape)
    return dict(counts.most_common())


def of_open_clip(model_cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Both towers of an open_clip config."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    image: dict[str, Any] = {"kind": vision.get("timm_model_name") or _vision_kind(vision)}
    width = vision.get("width", 768)
    if "timm_model_name" not in vision:
        resnet = isinstance(vision["layers"], list | tuple)
        heads = width * 32 if resnet else width
        image |= {
            "width": width,
            "layers": vision["layers"],
            "heads": heads // vision.get("head_width", 64),
            **({} if resnet else {"patch": vision.get("patch_size", 16)}),
        }
    image["image_size"] = vision.get("image_size", 224)
    hidden = text.get("hf_config")
    if hidden or text.get("hf_model_name"):
        facts = of_config(hidden or {}) | {"kind": text.get("hf_model_name", "transformers")}
        positions = facts.pop("context_length", None)
        words = {"positions": positions, "context_length": text.get("context_length", positions)}
        return {"image": image, "text": {**facts, **words}}
    return {
        "image": image,
        "text": {
            "kind": "transformer",
            "width": text.get("width", 512),
            "layers": text.get("layers", 12),
            "heads": text.get("heads", 8),
            "context_length": text.get("context_length", 77),
            "vocabulary": text.get("vocab_size", 49408),
        },
    }


def of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """One tower of a config of transformers, under this room's names."""
    facts = {ours: config[theirs] for theirs, ours in _CONFIG_NAMES.items() if theirs in config}
    return {"kind": config.get("model_type", "transformers"), **facts}


def _vision_kind(vision: Mapping[str, Any]) -> str:
    return "ResNet" if isinstance(vision["layers"], list | tuple) else "ViT"


def prefix_tree(tensors: Weights, depth: int = 3, most: int = 60) -> list[str]:
    """Beginnings of names with how many tensors and values each has; numbers become `*`."""
    tensors_of: Counter[str] = Counter()
    values_of: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts = re.sub(r"\b\d+\b", "*", name).split(".")
        prefix = ".".join(parts[:depth])
        # Layers of one kind are one line of the tree.
        tensors_of[prefix] += 1
        values_of[prefix] += math.prod(tensor.shape)
    lines = [
        f"{prefix}: {count} tensor{'s' * (count > 1)}, {values_of[prefix]:,} values"
        for prefix, count in sorted(tensors_of.items())
    ]
    rest = len(lines) - most
    return lines[:most] + ([f"... and {rest} more"] if rest > 0 else [])


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
    format: str = "unknown"
    opened_by: str | None = None
    """The call that opens it; None if the lab does not."""
    container: str = "folder"
    architecture: dict[str, dict[str, Any]] = field(default_factory=dict)
    embed_dim: int | None = None
    context_length: int | None = None
    image_size: int | None = None
    positions: dict[str, Any] = field(default_factory=dict)
    """length, kept, stretched, method and what of it was `seen`."""
    dtypes: dict[str, int] = field(default_factory=dict)
    """Values by type."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Values by tower: image, text, other, total."""
    compared: bool = False
    """Whether the architecture is known; if not, nothing can be said to be missing."""
    missing: list[str] = field(default_factory=list)
    """Weights that the architecture has and the file has not."""
    unexpected: list[str] = field(default_factory=list)
    """Weights that the file has and the architecture has not."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
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
            seen = self.positions
            ratio = f", ratio {seen['ratio']}" if "ratio" in seen else ""
            kept = f"{seen['kept']} kept, {seen['stretched']} stretched"
            yield "positions", f"{seen['length']}: {kept}, method {seen['method']}{ratio}"
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
    found = Inspection(str(path))
    # A pipeline of diffusers has one to three text encoders, each a folder of its own.
    if path.is_dir() and (encoders := sorted(path.glob("text_encoder*/config.json"))):
        parts = {file.parent.name: inspect(file.parent, digest=digest) for file in encoders}
        found.format, found.opened_by = "diffusers pipeline", "models.load_text_tower(PIPELINE)"
        found.context_length = max((part.context_length or 0) for part in parts.values()) or None
        return replace(found, parts=parts)
    if path.is_dir():
        checkpoint, files = read_folder(path)
        _explain_folder(found, path, checkpoint)
    elif path.is_file():
        checkpoint, files = read_checkpoint(path), [path]
        _explain_file(found, path, checkpoint)
    else:
        raise LabError(f"There is no file or folder {path}.")
    found.container = checkpoint.container
    found.positions = seen = _positions(checkpoint)
    text, image = (found.architecture.get(tower, {}) for tower in ("text", "image"))
    found.context_length = text.get("context_length", seen.get("length"))
    found.image_size = image.get("image_size")
    found.dtypes = count_dtypes(checkpoint.weights)
    found.parameters = count_parameters(checkpoint.weights)
    found.files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file) if digest else None}
        for file in files
    }
    if original is not None:
        sentence = _compared(checkpoint, seen, Path(original))
        seen.get("seen", found.notes).append(sentence)
    if checkpoint.unwrapped:
        found.notes.append(f"unwrapped: {', '.join(checkpoint.unwrapped)}")
    if checkpoint.beside:
        found.notes.append(f"a training state, beside the weights: {_some(checkpoint.beside)}")
    found.notes += _bad_numbers(checkpoint.weights, digest)
    return found


# --- Whose weights they are, and how their names and shapes compare with its architecture ---


def _compare(found: Inspection, tensors: Weights, expected: Weights) -> None:
    """Note what is missing, unexpected or of another shape."""
    # Names first, shapes second: a renamed weight shows up as one missing and one unexpected.
    own, theirs = ({n: list(t.shape) for n, t in side.items()} for side in (tensors, expected))
    found.compared = True
    found.missing += sorted(theirs.keys() - own.keys())
    found.unexpected += sorted(own.keys() - theirs.keys())
    found.notes += [
        f"{name} is {own[name]}, the architecture has {theirs[name]}"
        for name in sorted(theirs.keys() & own.keys())
        if own[name] != theirs[name]
    ]


def _compare_open_clip(found: Inspection, model_cfg: Any, tensors: Weights) -> None:
    found.architecture, found.embed_dim = of_open_clip(model_cfg), model_cfg["embed_dim"]
    with torch.device("meta"):  # names and shapes of the module, without memory for its weights
        expected = build_model(model_cfg).state_dict()
    _compare(found, tensors, expected)


def _explain_file(found: Inspection, path: Path, checkpoint: Checkpoint) -> None:
    """By the first reader whose layout the names have; else the tree of the names."""
    tensors = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in checkpoint.weights.items()
    }
    # The same table as `load`: what is explained is what would be opened.
    reader, release = find_reader(tensors), which_release(tensors)
    try:
        if release is not None:
            return _explain_release(found, release, tensors)
        if reader is not None:
            converted = reader.convert(replace(checkpoint, weights=tensors), path)
            found.format, found.opened_by = converted.title, converted.call
            found.notes += converted.notes
            _compare_open_clip(found, converted.model_cfg, converted.weights)
            found.notes += _left_out(converted.facts.get("left_out", {}))
            return None
    # A file that begins like a known one and is another must be told, not stumbled over.
    except Exception as error:  # sizes that do not fit raise whatever torch and others like
        found.format, found.opened_by = "unknown", None
        found.architecture, found.embed_dim = {}, None
        reason = shorten(str(error), 200)
        misfit = f"begins like another format, but does not fit it: {reason}"
        found.notes = [*prefix_tree(tensors), misfit]
        return None
    found.notes += prefix_tree(tensors)
    tops = {name.partition(".")[0] for name in tensors}
    if {"visual", "text"} <= tops:
        found.format = "open_clip state dict without its config"
        found.opened_by = "load(NAME, pretrained=FILE)"
        found.notes.append("its architecture is named outside the file: give load its name")
    elif tops & {"text_model", "vision_model"}:
        found.format = "weights of transformers' CLIP, without the folder's config.json"
        found.notes.append("inspect or load the folder, with config.json beside the weights")
    return None


def _explain_release(found: Inspection, name: str, tensors: Weights) -> None:
    """BLIP, X-VLM and X2-VLM: the towers themselves say on the meta device what does not fit."""
    release = RELEASES[name]
    found.format, found.opened_by = f"{release.kind} training state", "load(FILE): an adapter"
    try:
        with torch.device("meta"):
            model, size, left_out = rebuild(release, tensors)
    except Exception as error:  # as above
        found.notes.append(f"does not fit {release.kind}: {shorten(str(error), 300)}")
        return
    kind, width = type(model.image).__name__, model.vision_proj.in_features
    found.architecture = {
        "image": {"kind": kind, "width": width, "image_size": size},
        "text": of_config(model.text_encoder.config.to_dict()),
    }
    found.embed_dim, found.compared = model.embed_dim, True
    found.notes += _left_out(left_out)
    if release.kind == "BLIP":
        found.notes.append("PTP-BLIP has the same names: the file does not tell them apart")


def _left_out(left_out: Mapping[str, int]) -> list[str]:
    parts = ", ".join(f"{name} ({count} tensors)" for name, count in left_out.items())
    return [f"not needed for features and left out by load: {parts}"] if left_out else []


# --- Folders of weights: the lab's own, open_clip's, transformers' and diffusers' ---

_ENDINGS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_NAMED = {
    CONFIG: (WEIGHTS,),
    OPEN_CLIP_CONFIG: ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "config.json": ("model.safetensors", "pytorch_model.bin"),
}
"""The file of weights that belongs to a config; some folders hold one model for two libraries."""
_CALLS = {
    "clip": "load(FOLDER)",
    "align": "load(FOLDER): an adapter",
    "blip": "load(FOLDER): an adapter",
    "clip_text_model": "models.load_text_tower(FOLDER)",
}


def read_folder(folder: Path) -> tuple[Checkpoint, list[Path]]:
    """All tensors of a folder's shards, and the files.

    The file that belongs to the folder's config, else all safetensors, else the first other kind.
    Raises LabError if there are none, and as `read_checkpoints` does.
    """
    config = next((name for name in _NAMED if (folder / name).is_file()), "")
    named = [folder / name for name in _NAMED.get(config, ()) if (folder / name).is_file()]
    others = (sorted(folder.glob(pattern)) for pattern in _ENDINGS)
    files = named[:1] or next(filter(None, others), [])
    if not files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise LabError(f"There are no weights in {folder}: it holds {there}.")
    return read_checkpoints(files), files


def _explain_folder(found: Inspection, folder: Path, checkpoint: Checkpoint) -> None:
    """By the config in the folder; a folder without one is explained by its weights alone."""
    found.opened_by = "load(FOLDER)"
    if (folder / CONFIG).is_file():
        found.format = "longclip_lab folder"
        card = read_object(folder / CONFIG).get("card")
        card = card if isinstance(card, dict) else {}
        _explain_config(found, card.get("model_cfg"), checkpoint.weights)
        if not (folder / WEIGHTS).is_file():
            found.notes.append(f"{WEIGHTS} is missing: the folder was copied only in part")
        facts = ("provenance", "trained_on")
        found.notes += [f"{name}: {card[name]}" for name in facts if card.get(name)]
    elif (folder / OPEN_CLIP_CONFIG).is_file():
        found.format = "open_clip folder"
        model_cfg = read_object(folder / OPEN_CLIP_CONFIG).get("model_cfg")
        _explain_config(found, model_cfg, checkpoint.weights)
    elif (folder / "config.json").is_file():
        _explain_transformers(found, read_object(folder / "config.json"), checkpoint.weights)
    else:
        found.opened_by = None
        _explain_file(found, folder, checkpoint)


def _explain_config(found: Inspection, model_cfg: Any, weights: Weights) -> None:
    """Raises LabError for an open_clip config that nothing can be built from."""
    try:
        _compare_open_clip(found, model_cfg, weights)
    except LabError:
        raise
    except Exception as error:  # nobody has checked the config
        raise LabError(f"The config of {found.format} builds no model: {error}") from error


def _explain_transformers(found: Inspection, stored: dict[str, Any], weights: Weights) -> None:
    kind = str(stored.get("model_type", "?"))
    names = stored.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else None
    found.format, found.opened_by = f"transformers {name or kind}", _CALLS.get(kind)
    try:
        config = transformers.AutoConfig.for_model(**{**stored, "model_type": kind})
        facts = config.to_dict()
        vision, text = stored.get("vision_config"), stored.get("text_config")
        towers = {"image": facts.get("vision_config"), "text": facts.get("text_config")}
        if vision is None and text is None:
            towers = {"text": facts}
        found.architecture = {tower: of_config(part) for tower, part in towers.items() if part}
        dim = "image_text_hidden_size" if kind == "blip" else "projection_dim"
        found.embed_dim = facts.get(dim)
        if cls := getattr(transformers, name, None) if name else None:
            with torch.device("meta"):
                expected = cls(config).state_dict()
            # Older versions stored their positions 0, 1, 2 .., which are no weights.
            own = {n: t for n, t in weights.items()
                   if n in expected or not n.endswith("position_ids")}  # fmt: skip
            _compare(found, own, expected)
    except Exception as error:  # nobody has checked the config
        found.notes.append(
            f"config.json is none that this transformers knows: {shorten(str(error), 200)}"
        )


# --- What else is said of the values ---


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


def _some(names: list[str]) -> str:
    """The first few names and how many there are."""
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
