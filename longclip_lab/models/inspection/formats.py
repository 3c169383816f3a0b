"""Whose file of weights it is, and how its names and shapes compare with its architecture's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import torch

from longclip_lab.errors import LabError
from longclip_lab.models.adapters.releases import RELEASES, rebuild, which_release
from longclip_lab.models.assembly import build_model
from longclip_lab.models.checkpoints import Checkpoint
from longclip_lab.models.declip_checkpoints import (
    HEADS,
    declip_config,
    declip_weights,
    is_declip,
)
from longclip_lab.models.formats.openai_layout import (
    RESIDUAL,
    is_longclip,
    is_openai_layout,
    openai_config,
)
from longclip_lab.models.inspection import towers
from longclip_lab.models.left_out import leave_out
from longclip_lab.models.lotlip_checkpoints import is_lotlip, lotlip_config

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
        towers.of_open_clip(model_cfg),
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
        "text": towers.of_config(config.to_dict()),
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
    return Explained("unknown", None, notes=towers.prefix_tree(tensors))


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
