"""The same weights under open_clip's names and under those of transformers' CLIP.

Three things differ beside the names: transformers keeps queries, keys and values apart, has its
projections as linear layers (transposed), and puts `text_model.` or `vision_model.` before a
tower's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from longclip_lab.errors import LabError

Weights = dict[str, torch.Tensor]

TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
IMAGE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # the misspelling is transformers' own
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_LAYER_BACK = {theirs: ours for ours, theirs in _LAYER.items()}
_OURS = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_THEIRS = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def to_transformers(weights: Mapping[str, torch.Tensor], top: Mapping[str, str]) -> Weights:
    """A tower's weights without its projection; `top` is `TEXT` or `IMAGE`.

    Raises LabError for a weight that transformers' tower has no place for.
    """
    renamed: Weights = {}
    for name, tensor in weights.items():
        layer = _OURS.fullmatch(name)
        if name in top:
            renamed[top[name]] = tensor
        elif layer and layer[2] in _LAYER:
            renamed[f"encoder.layers.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "attn.in_proj":
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layers.{layer[1]}.self_attn.{part}_proj.{layer[3]}"] = rows
        else:
            raise LabError(f"transformers' CLIP has no place for the weight '{name}'.")
    return renamed


def from_transformers(weights: Mapping[str, torch.Tensor], top: Mapping[str, str]) -> Weights:
    """The way back.

    Raises LabError for a weight that open_clip's tower has no place for, and KeyError if queries
    come without keys or values.
    """
    back = {theirs: ours for ours, theirs in top.items()}
    renamed: Weights = {}
    for name, tensor in weights.items():
        layer = _THEIRS.fullmatch(name)
        if name in back:
            renamed[back[name]] = tensor
        elif layer and layer[2] in _LAYER_BACK:
            renamed[f"transformer.resblocks.{layer[1]}.{_LAYER_BACK[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "self_attn.q_proj":
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            joined = f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"
            renamed[joined] = torch.cat(parts)
        elif not (layer and layer[2] in ("self_attn.k_proj", "self_attn.v_proj")):
            raise LabError(f"open_clip's CLIP has no place for the weight '{name}'.")
    return renamed


def split(weights: Mapping[str, torch.Tensor], prefix: str) -> Weights:
    """The weights that begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def prefixed(weights: Mapping[str, torch.Tensor], prefix: str) -> Weights:
    """All weights, with `prefix` before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}
