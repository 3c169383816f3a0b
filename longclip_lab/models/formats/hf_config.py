"""Folders as transformers writes them: configs, names of weights, preprocessing, tokenizers.

Three things differ beside the names: transformers keeps queries, keys and values apart, has its
projections as linear layers (transposed), and puts `text_model.` or `vision_model.` before a
tower's names.

The facts are read from the module itself, not from its config, so that nothing is promised that
the module does not do.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from open_clip.transformer import (
    LayerNorm,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from open_clip.transformer import QuickGELU as _QuickGELU
from torch import nn

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.files import atomic_write, read_json_object, to_json
from longclip_lab.models.anatomy import pool_type, text_tower
from longclip_lab.models.checkpoint import read_checkpoints, read_state_dict
from longclip_lab.models.clip import HubTokenizer
from longclip_lab.text import get_tokenizer
from longclip_lab.text.tokenizers import ClipTokenizer

# --- The same weights under open_clip's names and under those of transformers' CLIP ---

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


# --- Their JSON, and their weights in one file or in shards ---

CONFIG = "config.json"
_STEMS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LabError if the file is missing or holds something else."""
    if not path.exists():
        raise LabError(f"There is no {path.name} in {path.parent}.")
    return read_json_object(path)


def clip_kind(folder: Path) -> str | None:
    """What a folder holds: transformers' "clip", "clip_text_model", .., "diffusers", or None."""
    if (folder / "model_index.json").is_file() or (folder / "text_encoder" / CONFIG).is_file():
        return "diffusers"
    if not (folder / CONFIG).is_file():
        return None
    kind = read_object(folder / CONFIG).get("model_type")
    return kind if isinstance(kind, str) and kind.startswith("clip") else None


def read_weights(folder: Path) -> Weights:
    """All tensors of a folder: model.safetensors or pytorch_model.bin, whole or in shards.

    Where both are there, safetensors. A file of half precision alone (model.fp16.safetensors) is
    read too. Raises LabError if there are none, if shards are missing or hold less than the index
    says, and as `read_state_dict` does.
    """
    for stem in _STEMS:
        if (folder / stem).is_file():
            return read_state_dict(folder / stem)
        if (folder / f"{stem}{_INDEX}").is_file():
            return _read_shards(folder / f"{stem}{_INDEX}")
    variants = sorted(folder.glob("model.*.safetensors"))
    if len(variants) == 1:
        return read_state_dict(variants[0])
    raise LabError(
        f"There are no weights in {folder}: expected {' or '.join(_STEMS)}, whole or with "
        f"{_INDEX}; got {', '.join(path.name for path in sorted(folder.iterdir()))}."
    )


def _read_shards(index: Path) -> Weights:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise LabError(f"{index} does not say which weights are in which file.")
    files = sorted(set(places.values()))
    if outside := [name for name in files if Path(name).name != name]:
        raise LabError(f"{index} names files outside its folder, which is refused: {outside[0]}.")
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise LabError(
            f"{len(missing)} of {len(files)} files of weights are missing in {index.parent}: "
            f"{', '.join(missing)}."
        )
    weights = read_checkpoints([index.parent / name for name in files]).weights
    if len(weights) < len(places) and (lost := sorted(places.keys() - weights.keys())):
        raise LabError(f"{index.parent} lacks {len(lost)} weights of its index, such as {lost[0]}.")
    return weights


# --- Preprocessing: preprocessor_config.json and open_clip's facts ---

FILE = "preprocessor_config.json"
_NEWER = "processor_config.json"
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_NUMBERS = {name: number for number, name in _INTERPOLATIONS.items()}


def read_preprocessing(folder: Path, image_size: int) -> dict[str, Any]:
    """What differs from OpenAI's preprocessing, under open_clip's names; the size is the tower's.

    A LabWarning says when the folder tells nothing and OpenAI's is taken, and when it prepares
    pictures of another size than the tower takes. Raises LabError for a way of resizing that
    open_clip does not have.
    """
    if (folder / FILE).is_file():
        facts = read_object(folder / FILE)
    elif (folder / _NEWER).is_file():
        facts = read_object(folder / _NEWER).get("image_processor", {})
    else:
        warnings.warn(
            f"{folder} has no {FILE}: pictures are prepared as OpenAI prepares them.",
            LabWarning,
            stacklevel=3,
        )
        return {}
    resized, cropped = facts.get("size", image_size), facts.get("crop_size", image_size)
    squashed = isinstance(resized, dict) and "shortest_edge" not in resized
    final = cropped if facts.get("do_center_crop", True) else resized
    if isinstance(final, dict):
        final = final.get("height", final.get("shortest_edge"))
    if final != image_size:
        warnings.warn(
            f"{folder} prepares pictures of {final} pixels, but its tower takes {image_size}: "
            f"{image_size} it is.",
            LabWarning,
            stacklevel=3,
        )
    resample = facts.get("resample", 3)
    if resample not in _INTERPOLATIONS:
        raise LabError(f"{folder} resizes pictures in PIL's way {resample}: expected 2 or 3.")
    told = {"mean": facts.get("image_mean"), "std": facts.get("image_std")}
    told = {name: tuple(values) for name, values in told.items() if values is not None}
    resize_mode = "squash" if squashed else "shortest"
    return {**told, "interpolation": _INTERPOLATIONS[resample], "resize_mode": resize_mode}


def preprocessor_config(facts: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json for the facts of `Clip.card["preprocess"]`.

    Raises LabError for what `CLIPImageProcessor` cannot do.
    """
    size = facts["size"]
    edge = size if isinstance(size, int) else size[0]
    mode = facts["resize_mode"]
    if mode not in ("shortest", "squash"):
        raise LabError(f"pictures are resized in the way '{mode}', which CLIPImageProcessor lacks")
    if facts["interpolation"] not in _NUMBERS:
        raise LabError(f"pictures are resized by '{facts['interpolation']}'")
    square = {"height": edge, "width": edge}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",  # the name in older versions
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if mode == "squash" else {"shortest_edge": edge},
        "resample": _NUMBERS[facts["interpolation"]],
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts["mean"]),
        "image_std": list(facts["std"]),
    }


# --- What an open_clip module is made of, or why transformers cannot hold it ---

QUICK, EXACT, TANH = "quick_gelu", "gelu", "gelu_pytorch_tanh"
"""Activations, under transformers' names."""


@dataclass(frozen=True)
class Blocks:
    """A plain pre-norm transformer: what both libraries call the same."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    eps: float


def describe_text(model: nn.Module) -> Blocks:
    """The text tower of an open_clip model, or of a `TextTransformer` alone.

    Raises LabError for a tower that is no causal transformer read off at its end token.
    """
    tower = text_tower(model)
    plain = hasattr(tower, "transformer") and isinstance(tower.transformer, Transformer)
    _refuse(not plain, "its text tower is not CLIP's transformer but " + type(tower).__name__)
    _refuse(getattr(tower, "corner", None) is not None, "corner tokens exist in longclip_lab only")
    pool = pool_type(model)
    _refuse(tower.attn_mask is None, "its text tower is not causal")
    _refuse(pool not in ("argmax", "eos"), f"its texts are read off by '{pool}', not at their end")
    _refuse(getattr(tower, "cls_emb", None) is not None, "its texts end in a class token (CoCa)")
    linear = isinstance(tower.text_projection, nn.Linear)
    _refuse(linear, "its text projection has a bias")
    return _describe(tower.transformer, tower.ln_final)


def describe_image(visual: nn.Module) -> Blocks:
    """The image tower of an open_clip model.

    Raises LabError for one that is no plain ViT with a class token.
    """
    kind = type(visual).__name__
    _refuse(
        not isinstance(visual, VisionTransformer), f"its image tower is a {kind}, not CLIP's ViT"
    )
    pooled = visual.attn_pool is not None or visual.pool_type != "tok"
    _refuse(pooled, "its pictures are not read off at a class token")
    _refuse(not isinstance(visual.ln_pre, nn.LayerNorm), "its ViT has no first layer norm")
    square = len({*visual.image_size}) == 1 and len({*visual.patch_size}) == 1
    _refuse(not square, "its pictures or patches are not square")
    return _describe(visual.transformer, visual.ln_post)


def _describe(transformer: Transformer, norm: LayerNorm) -> Blocks:
    plain = all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)
    _refuse(not plain, "its blocks are not CLIP's")
    first = transformer.resblocks[0]
    return Blocks(
        width=transformer.width,
        layers=len(transformer.resblocks),
        heads=first.attn.num_heads,
        mlp_width=first.mlp.c_fc.out_features,
        activation=_activation(first.mlp.gelu),
        eps=norm.eps,
    )


def _activation(layer: nn.Module) -> str:
    if isinstance(layer, _QuickGELU):
        return QUICK
    _refuse(not isinstance(layer, nn.GELU), f"its activation is {type(layer).__name__}")
    return TANH if layer.approximate == "tanh" else EXACT


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise LabError(reason)


# --- Configs: transformers' into open_clip's `model_cfg`, and back ---

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


# --- CLIP's tokenizer as files that `transformers.CLIPTokenizer` reads ---

_START, _END = "<|startoftext|>", "<|endoftext|>"


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Raise LabError for a tokenizer that is not CLIP's, and for a tower that lacks its ids."""
    if not isinstance(tokenizer, ClipTokenizer) or type(tokenizer) is not ClipTokenizer:
        raise LabError(f"its tokenizer '{tokenizer.name}' is not CLIP's")
    if tokenizer.vocab_size > vocab_size:
        raise LabError(
            f"its tower knows {vocab_size} tokens, but the tokenizer makes {tokenizer.vocab_size}"
        )


def warn_of_vocabulary(folder: Path) -> None:
    """A LabWarning if the tokenizer in `folder` numbers other pieces than CLIP's; none is fine."""
    if (folder / "vocab.json").is_file():
        vocabulary = read_object(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        vocabulary = read_object(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    else:
        return
    pieces = get_tokenizer("clip").entries[:-2]  # start and end have other names in transformers
    if any(vocabulary.get(piece) != number for number, piece in enumerate(pieces)):
        warnings.warn(
            f"The tokenizer in {folder} is not CLIP's, which is the one that is used here: texts "
            "will be misread. Give token ids of its own to encode_text.",
            LabWarning,
            stacklevel=4,
        )


def write_tokenizer(folder: Path, tokenizer: ClipTokenizer, context_length: int) -> None:
    """vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.

    Texts longer than `context_length` are cut by `truncation=True`. The file of merges is
    open_clip's; start and end have the names that transformers gives them. Padding is the end
    token, as in OpenAI's own folders.
    """
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    entries = [*tokenizer.entries[:-2], _START, _END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    atomic_write(folder / "vocab.json", to_json(vocabulary, ensure_ascii=False))
    atomic_write(folder / "merges.txt", "\n".join(["#version: 0.2", *tokenizer.merges, ""]))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def write_any_tokenizer(folder: Path, tokenizer: Any, context_length: int) -> None:
    """As `write_tokenizer`; a tokenizer of the hub writes its own files."""
    if isinstance(tokenizer, HubTokenizer):
        tokenizer.save(folder)
    else:
        write_tokenizer(folder, tokenizer, context_length)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As transformers writes its configs: two blanks, sorted."""
    atomic_write(path, to_json(content, indent=2, sort_keys=True) + "\n")
