"""What is in a file or folder of weights, read without building a model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers

from longclip_lab.errors import LabError
from longclip_lab.models.adapters import RELEASES, rebuild, which_release
from longclip_lab.models.build import build_model
from longclip_lab.models.checkpoint import Checkpoint, leave_out, read_checkpoints
from longclip_lab.models.formats.declip import HEADS, declip_config, declip_weights, is_declip
from longclip_lab.models.formats.hf_config import read_json
from longclip_lab.models.formats.lotlip import is_lotlip, lotlip_config
from longclip_lab.models.formats.openai import (
    RESIDUAL,
    is_longclip,
    is_openai_layout,
    openai_config,
)
from longclip_lab.models.load import CONFIG as OWN_CONFIG
from longclip_lab.models.load import WEIGHTS as OWN_WEIGHTS

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


def count_parameters(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Values by tower; indices, counters and masks are no parameters."""
    counts = {"image": 0, "text": 0, "other": 0}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not name.endswith("attn_mask"):
            counts[tower_of(name)] += math.prod(tensor.shape)
    return counts | {"total": sum(counts.values())}


def count_dtypes(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
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


def prefix_tree(tensors: Mapping[str, torch.Tensor], depth: int = 3, most: int = 60) -> list[str]:
    """Beginnings of names with how many tensors and values each has; numbers become `*`."""
    tensors_of: Counter[str] = Counter()
    values_of: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts = re.sub(r"\b\d+\b", "*", name).split(".")
        prefix = ".".join(parts[:depth])
        tensors_of[prefix] += 1
        values_of[prefix] += math.prod(tensor.shape)
    lines = [
        f"{prefix}: {count} tensor{'s' * (count > 1)}, {values_of[prefix]:,} values"
        for prefix, count in sorted(tensors_of.items())
    ]
    rest = len(lines) - most
    return lines[:most] + ([f"... and {rest} more"] if rest > 0 else [])


# --- Whose file of weights it is, and how its names and shapes compare with its ---

Weights = Mapping[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]
_TRACED = re.compile(r"(.*\.)?attn_mask$")


@dataclass
class Explained:
    """What the names and shapes of one file say."""

    format: str
    call: str | None
    """How the lab opens it; None if it does not."""
    architecture: dict[str, dict[str, Any]] = field(default_factory=dict)
    embed_dim: int | None = None
    compared: bool = False
    """Whether the architecture was known, so that `missing` and `unexpected` mean something."""
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def on_meta(tensors: Weights) -> dict[str, torch.Tensor]:
    """Shapes and types without values."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }


def shapes(tensors: Weights) -> Shapes:
    """Names and shapes."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def meta_shapes(model_cfg: dict[str, Any]) -> Shapes:
    """Names and shapes of an open_clip model, without any memory for its weights."""
    with torch.device("meta"):
        return shapes(build_model(model_cfg).state_dict())


def compare(explained: Explained, found: Shapes, expected: Shapes) -> None:
    """Put what is missing, unexpected or of another shape into `explained`."""
    explained.compared = True
    explained.missing += sorted(expected.keys() - found.keys())
    explained.unexpected += sorted(found.keys() - expected.keys())
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            explained.notes.append(
                f"{name} is {list(found[name])}, the architecture has {list(expected[name])}"
            )


def explain_weights(checkpoint: Checkpoint) -> Explained:
    """The first of the known formats that the names fit; else one with the tree of the names."""
    tensors = on_meta(checkpoint.weights)
    for matches, explain in _KINDS:
        if matches(tensors):
            try:
                return explain(tensors, checkpoint)
            except Exception as error:  # sizes that do not fit raise whatever torch and others like
                half = _unknown(tensors)
                half.notes.append(
                    f"begins like another format, but does not fit it: {shorten(str(error), 200)}"
                )
                return half
    return _unknown(tensors)


def _by_config(
    title: str, call: str, model_cfg: dict[str, Any], found: Shapes, notes: list[str] | None = None
) -> Explained:
    explained = Explained(
        title,
        call,
        of_open_clip(model_cfg),
        model_cfg["embed_dim"],
        notes=list(notes or []),
    )
    compare(explained, found, meta_shapes(model_cfg))
    return explained


def _openai_shapes(tensors: Weights) -> Shapes:
    """Without the causal mask, which comes along where it was traced with the weights."""
    return {name: shape for name, shape in shapes(tensors).items() if not _TRACED.match(name)}


def _longclip(tensors: Weights, checkpoint: Checkpoint) -> Explained:
    found = _openai_shapes(tensors)
    found.pop(RESIDUAL)
    return _by_config("Long-CLIP state dict", "load(FILE)", openai_config(tensors), found)


def _openai(tensors: Weights, checkpoint: Checkpoint) -> Explained:
    model_cfg, found = openai_config(tensors), _openai_shapes(tensors)
    archive = checkpoint.container.startswith("TorchScript")
    if checkpoint.from_openai:
        kind = "TorchScript archive" if archive else "state dict"
        return _by_config(f"OpenAI {kind}", "load(FILE)", model_cfg, found)
    note = (
        "OpenAI's names without the three numbers that its code writes: open_clip has the same "
        "names. The activation (QuickGELU or GELU) and the heads' width are not in the file."
    )
    call = "load(FILE), or load(NAME, pretrained=FILE) if open_clip trained it"
    title = "state dict in OpenAI's layout (OpenAI or open_clip)"
    return _by_config(title, call, model_cfg, found, [note])


def _lotlip(tensors: Weights, checkpoint: Checkpoint) -> Explained:
    model_cfg = lotlip_config(tensors)
    corners = model_cfg.get("corner_tokens", {}).get("num_corner", 0)
    found = shapes(tensors)
    found.pop("text.transformer.embeddings.position_ids", None)
    if corners:
        words = "text.transformer.embeddings.word_embeddings.weight"
        rows, width = found[words]
        found |= {words: (rows - corners, width), "text.corner_embedding": (corners, width)}
    note = f"{corners} of the word embeddings are corner tokens"
    return _by_config("LoTLIP state dict", "load(FILE)", model_cfg, found, [note])


def _declip(tensors: Weights, checkpoint: Checkpoint) -> Explained:
    kept, left_out = leave_out(tensors, HEADS)
    explained = _by_config(
        "DeCLIP training state", "load(FILE)", declip_config(kept), shapes(declip_weights(kept))
    )
    explained.notes += [_left_out(left_out)] if left_out else []
    return explained


def _release(tensors: Weights, checkpoint: Checkpoint) -> Explained:
    release = RELEASES[which_release(tensors)]
    title = f"{release.kind} training state"
    explained = Explained(title, "load(FILE): an adapter")
    try:
        with torch.device("meta"):
            model, size, left_out = rebuild(release, tensors)
    except Exception as error:  # as above
        explained.notes.append(f"does not fit {release.kind}: {shorten(str(error), 300)}")
        return explained
    config = model.text_encoder.config
    image = {"kind": type(model.image).__name__, "width": model.vision_proj.in_features}
    explained.architecture = {
        "image": {**image, "image_size": size},
        "text": of_config(config.to_dict()),
    }
    explained.embed_dim, explained.compared = model.embed_dim, True
    explained.notes += [_left_out(left_out)] if left_out else []
    if release.kind == "BLIP":
        explained.notes.append("PTP-BLIP has the same names: the file does not tell them apart")
    return explained


def _left_out(left_out: Mapping[str, int]) -> str:
    parts = ", ".join(f"{name} ({count} tensors)" for name, count in left_out.items())
    return f"not needed for features and left out by load: {parts}"


def _open_clip(tensors: Weights, checkpoint: Checkpoint) -> Explained:
    explained = _unknown(tensors)
    explained.format = "open_clip state dict without its config"
    explained.call = "load(NAME, pretrained=FILE)"
    explained.notes.append("its architecture is named outside the file: give load its name")
    return explained


def _transformers(tensors: Weights, checkpoint: Checkpoint) -> Explained:
    explained = _unknown(tensors)
    explained.format = "weights of transformers' CLIP, without the folder's config.json"
    explained.notes.append("inspect or load the folder, with config.json beside the weights")
    return explained


def _unknown(tensors: Weights) -> Explained:
    return Explained("unknown", None, notes=prefix_tree(tensors))


def _is_open_clip(tensors: Weights) -> bool:
    names = list(tensors)
    return any(name.startswith("visual.") for name in names) and any(
        name.startswith("text.") for name in names
    )


def _is_transformers(tensors: Weights) -> bool:
    return any(name.startswith(("text_model.", "vision_model.")) for name in tensors)


_KINDS: tuple[
    tuple[Callable[[Weights], bool], Callable[[Weights, Checkpoint], Explained]], ...
] = (
    (is_longclip, _longclip),
    (is_lotlip, _lotlip),
    (is_declip, _declip),
    (lambda tensors: which_release(tensors) is not None, _release),
    (is_openai_layout, _openai),
    (_is_open_clip, _open_clip),
    (_is_transformers, _transformers),
)  # fmt: skip


def explain_config(title: str, call: str, model_cfg: Any, tensors: Weights) -> Explained:
    """A file whose open_clip config stands beside it, as the `model_cfg` it says.

    Raises LabError for a config that nothing can be built from.
    """
    try:
        return _by_config(title, call, model_cfg, shapes(tensors))
    except Exception as error:  # nobody has checked the config
        if isinstance(error, LabError):
            raise
        raise LabError(f"The config of {title} builds no model: {error}") from error


# --- Folders of weights: the lab's own, open_clip's, transformers' and diffusers' ---

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_NAMED = {
    OWN_CONFIG: (OWN_WEIGHTS,),
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "config.json": ("model.safetensors", "pytorch_model.bin"),
}
"""The file of weights that belongs to a config; some folders hold one model for two libraries."""
_CALLS = {
    "clip": "load(FOLDER)",
    "align": "load(FOLDER): an adapter",
    "blip": "load(FOLDER): an adapter",
    "clip_text_model": "models.load_text_tower(FOLDER)",
}


def weight_files(folder: Path) -> list[Path]:
    """The file that belongs to the folder's config; else safetensors, else the first other kind."""
    for config, names in _NAMED.items():
        if (folder / config).is_file():
            if files := [folder / name for name in names if (folder / name).is_file()]:
                return files[:1]
            break
    for pattern in _WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def read_folder(folder: Path) -> tuple[Checkpoint, list[Path]]:
    """All tensors of a folder's shards, and the files.

    Raises LabError if there are none, and as `read_checkpoints` does.
    """
    files = weight_files(folder)
    if not files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise LabError(f"There are no weights in {folder}: it holds {there}.")
    return read_checkpoints(files), files


def explain_folder(folder: Path, checkpoint: Checkpoint) -> Explained:
    """By the config in the folder; a folder without one is explained by its weights alone."""
    explain: Callable[[Path, Checkpoint], Explained]
    if (folder / OWN_CONFIG).is_file():
        explain = _own
    elif (folder / "open_clip_config.json").is_file():
        explain = _folders_open_clip
    elif (folder / "config.json").is_file():
        explain = _folders_transformers
    else:
        return explain_weights(checkpoint)
    return explain(folder, checkpoint)


def pipeline_parts(folder: Path) -> dict[str, Path]:
    """The text encoders of a diffusers pipeline, by their names in it; empty for other folders."""
    encoders = sorted(folder.glob("text_encoder*/config.json"))
    return {path.parent.name: path.parent for path in encoders}


def _own(folder: Path, checkpoint: Checkpoint) -> Explained:
    config = read_json(folder / OWN_CONFIG)
    card = config.get("card")
    card = card if isinstance(card, dict) else {}
    explained = explain_config(
        "longclip_lab folder", "load(FOLDER)", card.get("model_cfg"), checkpoint.weights
    )
    if not (folder / OWN_WEIGHTS).is_file():
        explained.notes.append(f"{OWN_WEIGHTS} is missing: the folder was copied only in part")
    facts = ("provenance", "trained_on")
    explained.notes += [f"{name}: {card[name]}" for name in facts if card.get(name)]
    return explained


def _folders_open_clip(folder: Path, checkpoint: Checkpoint) -> Explained:
    config = read_json(folder / "open_clip_config.json")
    model_cfg = config.get("model_cfg")
    return explain_config("open_clip folder", "load(FOLDER)", model_cfg, checkpoint.weights)


def _folders_transformers(folder: Path, checkpoint: Checkpoint) -> Explained:
    stored = read_json(folder / "config.json")
    kind = str(stored.get("model_type", "?"))
    names = stored.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else None
    explained = Explained(f"transformers {name or kind}", _CALLS.get(kind))
    try:
        _explain_config(explained, checkpoint, stored, kind, name)
    except Exception as error:  # nobody has checked the config
        explained.notes.append(
            f"config.json is none that this transformers knows: {shorten(str(error), 200)}"
        )
    return explained


def _explain_config(
    explained: Explained,
    checkpoint: Checkpoint,
    stored: dict[str, Any],
    kind: str,
    name: str | None,
) -> None:
    cls: Any = getattr(transformers, name, None) if name else None
    config = transformers.AutoConfig.for_model(**{**stored, "model_type": kind})
    vision, text = stored.get("vision_config"), stored.get("text_config")
    facts = config.to_dict()
    whole = {"text" if vision is None else "image": facts}
    parts = {"image": facts.get("vision_config"), "text": facts.get("text_config")}
    used = parts if vision is not None or text is not None else whole
    explained.architecture = {name: of_config(part) for name, part in used.items() if part}
    explained.embed_dim = facts.get(
        "image_text_hidden_size" if kind == "blip" else "projection_dim"
    )
    if cls is not None:
        with torch.device("meta"):
            expected = shapes(cls(config).state_dict())
        found = {name: s for name, s in shapes(checkpoint.weights).items() if name in expected
                 or not name.endswith("position_ids")}  # fmt: skip
        compare(explained, found, expected)
