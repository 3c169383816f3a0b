"""The sizes and switches of a CLIP: transformers' config into open_clip's `model_cfg` and back."""

from __future__ import annotations

from typing import Any

import transformers

from longclip_lab.errors import LabError
from longclip_lab.models.formats.describe import EXACT, QUICK, TANH, Blocks

LEGACY_END = 2
"""The eos_token_id of configs older than transformers 4.31: texts are read off at their largest id.

Later ones name the end token, and texts are read off where it stands first."""
_EPS = 1e-5


def text_cfg(config: transformers.CLIPTextConfig) -> dict[str, Any]:
    """open_clip's `text_cfg`."""
    cfg = {
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        **_shared(config),
    }
    end = config.eos_token_id
    if end not in (LEGACY_END, config.vocab_size - 1):
        if not isinstance(end, int):
            raise LabError(f"Texts are read off at one end token, but the config names {end}.")
        cfg |= {"pool_type": "eos", "eos_id": end}
    return cfg


def vision_cfg(config: transformers.CLIPVisionConfig) -> dict[str, Any]:
    """open_clip's `vision_cfg`."""
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(config, name), int):
            raise LabError(f"Expected square pictures, got {name} {getattr(config, name)}.")
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "head_width": config.hidden_size // config.num_attention_heads,
        **_shared(config),
    }


def quick_gelu(*configs: transformers.PretrainedConfig) -> bool:
    """Whether the towers use QuickGELU; raises LabError if only one does, or for another one."""
    names = {config.hidden_act for config in configs}
    if not names <= {QUICK, EXACT, TANH} or (QUICK in names and len(names) > 1):
        raise LabError(
            f"Expected the activation {QUICK} in all towers, or {EXACT} or {TANH}; got "
            f"{', '.join(sorted(names))}."
        )
    return names == {QUICK}


def _shared(config: transformers.PretrainedConfig) -> dict[str, Any]:
    ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * ratio) != config.intermediate_size:
        ratio += 1e-9  # open_clip multiplies and rounds down
    cfg: dict[str, Any] = {} if ratio == 4 else {"mlp_ratio": ratio}
    if config.layer_norm_eps != _EPS:
        cfg["norm_kwargs"] = {"eps": config.layer_norm_eps}
    if config.hidden_act == TANH:
        cfg["act_kwargs"] = {"approximate": "tanh"}
    return cfg


def text_config(blocks: Blocks, vocab_size: int, length: int, end: int, dim: int) -> dict[str, Any]:
    """A `CLIPTextConfig` as JSON."""
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "max_position_embeddings": length,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": 1,  # transformers' own default; nothing in the model reads it
        **_blocks(blocks, dim),
    }


def vision_config(blocks: Blocks, image_size: int, patch_size: int, dim: int) -> dict[str, Any]:
    """A `CLIPVisionConfig` as JSON."""
    return {
        "model_type": "clip_vision_model",
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": 3,
        **_blocks(blocks, dim),
    }


def _blocks(blocks: Blocks, dim: int) -> dict[str, Any]:
    return {
        "hidden_size": blocks.width,
        "intermediate_size": blocks.mlp_width,
        "num_hidden_layers": blocks.layers,
        "num_attention_heads": blocks.heads,
        "hidden_act": blocks.activation,
        "layer_norm_eps": blocks.eps,
        "attention_dropout": 0.0,
        "projection_dim": dim,
    }
