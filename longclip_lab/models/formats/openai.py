"""OpenAI's and Long-CLIP's state dicts.

Both name their weights as open_clip does. Long-CLIP's released files have two tables of positions
of the full length: `positional_embedding`, of which positions 0-19 are used, and
`positional_embedding_res`, used from 20 on. Nothing but shapes says what the architecture is:
patches or a ResNet, a head for every 64 of width, always QuickGELU.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.checkpoint import Checkpoint, count_layers, fill, fitting, read_checkpoint
from longclip_lab.models.clip import Clip
from longclip_lab.text import get_tokenizer

# --- What `export` notes beside weights, for formats that have no name for it, and `load` ---

OURS = "longclip_lab"
"""The entry of config.json and open_clip_config.json that other libraries pass over."""
PLAIN_LENGTH = 77


def note(name: str, card: dict[str, Any]) -> dict[str, Any]:
    """The entry for a model of that name and card."""
    return {OURS: {"name": name, "positions": card["positions"]}}


def positions_card(stored: dict[str, Any], length: int) -> dict[str, Any]:
    """How a table of positions came about: as `stored` notes it; else unknown where not 77 long."""
    ours = stored.get(OURS)
    told = ours.get("positions") if isinstance(ours, dict) else None
    if isinstance(told, dict) and told.get("length") == length:
        return told
    method = "none" if length == PLAIN_LENGTH else "unknown"
    return {"method": method, "keep": 0, "ratio": length / PLAIN_LENGTH, "length": length}


# --- State dicts in OpenAI's layout, OpenAI's own and Long-CLIP's, into open_clip modules ---

KEPT, RATIO = 20, 4
RESIDUAL = "positional_embedding_res"
HEAD_WIDTH = 64
_RESNET = "visual.layer1.0.conv1.weight"


def is_longclip(weights: Mapping[str, torch.Tensor]) -> bool:
    """True if the state dict has Long-CLIP's second table of positions."""
    return RESIDUAL in weights


def is_openai_layout(weights: Mapping[str, torch.Tensor]) -> bool:
    """True for a text transformer on the top level beside a ViT or a ResNet, under OpenAI's names.

    So are open_clip's own state dicts: these shapes alone do not tell whose code wrote the file.
    """
    towers = ("visual.proj", "visual.attnpool.positional_embedding")
    return "positional_embedding" in weights and any(name in weights for name in towers)


def openai_config(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The open_clip `model_cfg` of a state dict in OpenAI's layout, read from the shapes alone.

    Raises KeyError if a weight is missing that every such model has, and LabError for a width that
    heads of 64 do not divide: how many heads such a tower has is not in the file.
    """
    text_width = weights["ln_final.weight"].shape[0]
    widths = {"text": text_width}
    if _RESNET not in weights:
        widths["image"] = weights["visual.conv1.weight"].shape[0]
    for tower, width in widths.items():
        if width % HEAD_WIDTH or not width:
            raise LabError(
                f"its {tower} tower is {width} wide, which heads of {HEAD_WIDTH}, as OpenAI's "
                "code has them, do not divide. If open_clip trained it, name its architecture: "
                'load("ViT-B-16", pretrained=FILE)'
            )
    return {
        "embed_dim": weights["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": _resnet_config(weights) if _RESNET in weights else _vit_config(weights),
        "text_cfg": {
            "context_length": len(weights["positional_embedding"]),
            "vocab_size": len(weights["token_embedding.weight"]),
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": count_layers(weights, "transformer"),
        },
    }


def load_openai_layout(path: str | os.PathLike[str], checkpoint: Checkpoint | None = None) -> Clip:
    """A file of OpenAI or of Long-CLIP as a `Clip`; `checkpoint` spares reading it again.

    Raises LabError as `read_checkpoint` does, and for a file of another architecture. A LabWarning
    says so where the file may as well be open_clip's, whose activation it does not state.
    """
    checkpoint = read_checkpoint(path) if checkpoint is None else checkpoint
    weights = {
        name: tensor
        for name, tensor in checkpoint.weights.items()
        if not name.endswith("attn_mask")  # the causal mask, where it was traced with the weights
    }
    if not is_longclip(weights) and not is_openai_layout(weights):
        raise LabError(
            f"{path} is a checkpoint of another architecture: neither OpenAI's nor Long-CLIP's (no "
            f"'{RESIDUAL}'), nor LoTLIP's or DeCLIP's. Weights of another architecture need its "
            'name, such as load("ViT-B-16", pretrained=FILE). Its names begin with: '
            f"{_beginnings(weights)}."
        )
    long = weights.pop(RESIDUAL, None)
    complaint = "is a checkpoint of another architecture, not OpenAI's ViT or ResNet"
    with fitting(path, complaint):
        if long is not None:
            weights["positional_embedding"] = joined_positions(
                weights["positional_embedding"], long
            )
        model_cfg = openai_config(weights)
        model = build_model(model_cfg)
        fill(model, weights)
    if long is None and not checkpoint.from_openai:
        warnings.warn(
            f"{Path(path).name} is taken for OpenAI's kind of CLIP: QuickGELU, heads of "
            f"{HEAD_WIDTH}. If open_clip trained it, name its architecture: "
            'load("ViT-B-16", pretrained=FILE).',
            LabWarning,
            stacklevel=3,
        )
    clip = assemble(
        model,
        model_cfg,
        get_tokenizer("clip"),
        preprocess_card(model),
        Path(path).stem,
        provenance=f"{'OpenAI' if long is None else 'Long-CLIP'} checkpoint file {Path(path).name}",
        trained_on="not stated in the file",
    )
    length = model_cfg["text_cfg"]["context_length"]
    clip.card["positions"] = positions_card({}, length)
    if long is not None:
        clip.card["positions"] |= {"method": "kps", "keep": KEPT, "ratio": RATIO}
    return clip


def joined_positions(first_LW: torch.Tensor, later_LW: torch.Tensor) -> torch.Tensor:
    """Long-CLIP's two tables as the one that is read: positions 0-19 of the first, then the other.

    Raises LabError unless they have the same size.
    """
    if first_LW.ndim != 2 or first_LW.shape != later_LW.shape:
        raise LabError(
            f"its two tables of positions differ: positional_embedding has {list(first_LW.shape)}, "
            f"{RESIDUAL} {list(later_LW.shape)}; Long-CLIP's have the same size, so this is no "
            "whole Long-CLIP"
        )
    return torch.cat([first_LW[:KEPT], later_LW[KEPT:]])


def _beginnings(weights: Mapping[str, torch.Tensor], most: int = 5) -> str:
    """Under which first parts of their names how many weights there are."""
    counts = Counter(name.partition(".")[0] for name in weights).most_common()
    some = ", ".join(f"{name} ({count})" for name, count in counts[:most])
    return some + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _vit_config(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    patch_rows = weights["visual.conv1.weight"]
    grid = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    return {
        "image_size": grid * patch_rows.shape[-1],
        "layers": count_layers(weights, "visual.transformer"),
        "width": patch_rows.shape[0],
        "patch_size": patch_rows.shape[-1],
    }


def _resnet_config(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """OpenAI's ResNets shrink the picture by 32 before the attention pool."""
    grid = round((len(weights["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
    blocks = [_count(weights, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    return {"image_size": grid * 32, "layers": blocks, "width": len(weights[_RESNET])}


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.match(pattern, name))})
