"""Architectures told from configs, and to which tower a weight belongs from its name."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

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
