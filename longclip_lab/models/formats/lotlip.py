"""Checkpoint files of LoTLIP, read into open_clip modules and written again.

The released code saves open_clip state dicts of a timm image tower (`visual.trunk.*`) and a BERT
(`text.transformer.*`, `text.proj.weight`) whose word embeddings have m more rows than the
vocabulary: the corner tokens. Here these rows are a weight of their own, so that no id moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from longclip_lab.errors import LabError
from longclip_lab.files import read_json_object
from longclip_lab.models import tiny
from longclip_lab.models.build import Converted
from longclip_lab.models.checkpoint import Checkpoint, Weights, count_blocks
from longclip_lab.models.clip import Clip
from longclip_lab.models.corner_tokens import CornerTextEncoder, corners_of
from longclip_lab.text import get_tokenizer

BERT_VOCABULARY = 30522
CONTEXT_LENGTH = 128
_WORDS = "text.transformer.embeddings.word_embeddings.weight"
_CORNERS = "text.corner_embedding"
_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
_MANY_HEADS = (312, 384)  # TinyBERT and MiniLM have 12 heads, all others one for 64 of width


def is_lotlip(state_dict: Weights) -> bool:
    """True for a state dict of a timm image tower and a BERT, with corner tokens or without."""
    return _WORDS in state_dict and any(name.startswith("visual.trunk.") for name in state_dict)


def convert_lotlip(checkpoint: Checkpoint, path: Path) -> Converted:
    """A checkpoint in the layout of LoTLIP's code; 0 corners are a LiT's.

    Sizes come from the shapes. What shapes do not tell comes from a config of open_clip's layout
    beside the file, if there is one (FILE.json or open_clip_config.json, such as the released
    lotlip_bert-ViT-B-16.json): `text_cfg` may give "num_corner_token", "context_length" and
    "heads", `vision_cfg` the timm model. Without: rows beyond BERT's 30,522 are corners (2 in a
    smaller vocabulary), 128 tokens, a head for every 64 of width (MiniLM's 12), timm's plain ViT.

    Raises LabError as `lotlip_config` does.
    """
    weights = dict(checkpoint.weights)
    # Older versions of transformers saved their table of positions 0, 1, 2 ..
    weights.pop("text.transformer.embeddings.position_ids", None)
    model_cfg = lotlip_config(weights, _config_beside(path))
    corners = model_cfg.get("corner_tokens", {}).get("num_corner", 0)
    if corners:
        words = weights[_WORDS]
        weights |= {_WORDS: words[:-corners].clone(), _CORNERS: words[-corners:].clone()}
    half = (0.5, 0.5, 0.5)
    world = len(weights[_WORDS]) == get_tokenizer("world").vocab_size
    return Converted(
        "LoTLIP state dict",
        model_cfg,
        weights,
        tokenizer="world" if world else "lotlip",
        preprocess={"mean": half, "std": half},
        notes=(f"{corners} of the word embeddings are corner tokens",),
    )


def lotlip_config(weights: Weights, beside: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `model_cfg` of a state dict of LoTLIP's layout; `beside` as in `convert_lotlip`.

    Raises LabError for an image tower that no timm model is known for, and KeyError if a weight is
    missing that every such model has.
    """
    beside = beside or {}
    text_facts = beside.get("text_cfg", {})
    rows, width = weights[_WORDS].shape
    # BERT's vocabulary is known; the rows behind it are the corners.
    guessed = rows - BERT_VOCABULARY if rows >= BERT_VOCABULARY else 2
    corners = int(text_facts.get("num_corner_token", guessed))
    if not 0 <= corners < min(rows, 256):
        raise LabError(
            f"{corners} of {rows} word embeddings would be corner tokens: state their number as "
            '"num_corner_token" in a config beside the file.'
        )
    embeddings = "text.transformer.embeddings"
    positions = len(weights[f"{embeddings}.position_embeddings.weight"])
    # The number of heads is in no shape.
    heads = 12 if width in _MANY_HEADS else max(width // 64, 1)
    hf_config = {
        "model_type": "bert",
        "vocab_size": rows - corners,
        "hidden_size": width,
        "num_hidden_layers": count_blocks(weights, r"text\.transformer\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": int(text_facts.get("heads", heads)),
        "intermediate_size": len(
            weights["text.transformer.encoder.layer.0.intermediate.dense.weight"]
        ),
        "max_position_embeddings": positions,
        "type_vocab_size": len(weights[f"{embeddings}.token_type_embeddings.weight"]),
        "pad_token_id": 0,
    }
    model_cfg = {
        "embed_dim": len(weights["text.proj.weight"]),
        "vision_cfg": _vision_cfg(weights, beside.get("vision_cfg")),
        "text_cfg": {
            "context_length": min(text_facts.get("context_length", CONTEXT_LENGTH), positions),
            "hf_model_name": text_facts.get("hf_model_name", "bert-base-uncased"),
            "hf_config": hf_config,
            "hf_proj_type": "linear",
            "hf_pooler_type": "cls_pooler",
        },
    }
    if corners:
        model_cfg["corner_tokens"] = {"num_corner": corners}
    return model_cfg


def lotlip_state_dict(clip: Clip) -> dict[str, torch.Tensor]:
    """The weights of `clip` in the layout of LoTLIP's code, corner tokens as the last word rows.

    Raises LabError for a model whose text tower is not a BERT, and for corners whose positions
    were kept, which that code would shift.
    """
    corner = corners_of(clip)
    weights = {name: tensor.detach().cpu() for name, tensor in clip.model.state_dict().items()}
    if not is_lotlip(weights):
        raise LabError(f"'{clip.name}' is not made of a timm image tower and a BERT.")
    if corner is None:
        return weights
    if not isinstance(clip.model.text, CornerTextEncoder) or not corner.shift:
        raise LabError(
            "LoTLIP's code gives corner tokens positions of their own: only models with "
            "positions='shifted' can be written in its layout."
        )
    # The released code looks corners up as the last word ids.
    weights[_WORDS] = torch.cat([weights[_WORDS], weights.pop(_CORNERS)])
    return weights


def _vision_cfg(weights: Weights, stated: dict[str, Any] | None) -> dict[str, Any]:
    """open_clip's `vision_cfg`: the one stated, or read from the shapes of a ViT."""
    if stated is not None:
        known = ("timm_model_name", "timm_pool", "timm_proj", "image_size")
        stated = {key: stated[key] for key in known if key in stated}
        if "image_size" not in stated:
            with torch.device("meta"):
                trunk = timm.create_model(stated["timm_model_name"])
            stated["image_size"] = trunk.default_cfg["input_size"][-1]
        return stated
    if "visual.trunk.patch_embed.layers.0.weight" in weights:
        name, size = tiny.IMAGE_MODEL, tiny.IMAGE_SIZE
    else:
        name, size = _vit_name(weights)
    if "visual.head.proj.weight" in weights:
        projection = "linear"
    else:
        projection = "" if "visual.trunk.head.weight" in weights else "none"
    return {
        "timm_model_name": name,
        "timm_pool": "token" if "visual.trunk.cls_token" in weights else "avg",
        "timm_proj": projection,
        "image_size": size,
    }


def _vit_name(weights: Weights) -> tuple[str, int]:
    width, _, patch, _ = weights["visual.trunk.patch_embed.proj.weight"].shape
    tokens = weights["visual.trunk.pos_embed"].shape[1] - ("visual.trunk.cls_token" in weights)
    size = patch * round(tokens**0.5)
    name = f"vit_{_WIDTHS.get(width, width)}_patch{patch}_{size}"
    if not timm.is_model(name):
        raise LabError(
            f"The image tower (width {width}, patches of {patch}, pictures of {size}) is no ViT "
            "of timm's: name it as timm_model_name in a config beside the file."
        )
    return name, size


def _config_beside(path: Path) -> dict[str, Any]:
    for candidate in (path.with_suffix(".json"), path.with_name("open_clip_config.json")):
        if candidate != path and candidate.is_file():
            config = read_json_object(candidate)
            inner = config.get("model_cfg", config)
            if not isinstance(inner, dict):
                raise LabError(f"{candidate} has no object under 'model_cfg'.")
            return inner
    return {}
