"""Small models of every make of tower, with random weights, as whole `Clip`s."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import open_clip
import torch
import transformers
from torch import nn

from longclip_lab.models import Clip, new_tiny
from longclip_lab.models.build import build_model
from longclip_lab.models.corner_tokens import CornerTokens, give_corners
from longclip_lab.text import get_tokenizer

WORDS = new_tiny().vocab_size
TEXT = {"context_length": 77, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 72, "layers": 2, "width": 64, "patch_size": 24, "head_width": 32}
TIMM_VIT = partial(
    open_clip.timm_model.timm.models.vision_transformer.VisionTransformer,
    img_size=72,
    patch_size=24,
    embed_dim=32,
    depth=2,
    num_heads=2,
    num_classes=0,
)
OPEN_CLIP_IMAGES = {
    "class token": VIT,
    "average, norm before": {**VIT, "pool_type": "avg"},
    "average, norm after": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
    "attention pool": {**VIT, "attentional_pool": True, "attn_pooler_queries": 4},
    "resnet": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
}
TIMM_IMAGES = {
    "timm average, norm after": {"class_token": False, "global_pool": "avg"},
    "timm average, norm before": {"global_pool": "avg", "fc_norm": False},
    "timm class token": {"reg_tokens": 2},
    "timm attention pool": {"class_token": False, "global_pool": "map"},
    "timm maximum": {"class_token": False, "global_pool": "max"},
}
IMAGES = {**OPEN_CLIP_IMAGES, **TIMM_IMAGES}
TEXTS = ("causal", "both ways", "bert", "causal registers", "bert registers")


@lru_cache
def image_clip(name: str) -> Clip:
    """A small text tower and the image tower `name` of `IMAGES`."""
    torch.manual_seed(0)
    vision_cfg = OPEN_CLIP_IMAGES.get(name, VIT)
    model = build_model({"embed_dim": 32, "vision_cfg": vision_cfg, "text_cfg": TEXT})
    if name in TIMM_IMAGES:
        tower = open_clip.timm_model.TimmModel.__new__(open_clip.timm_model.TimmModel)
        nn.Module.__init__(tower)
        tower.trunk = TIMM_VIT(**TIMM_IMAGES[name])
        for parameter in tower.trunk.parameters():  # timm's are so small that patches look alike
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
        tower.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, 32))
        model.visual = tower
    return _whole(model, vision_cfg["image_size"])


@lru_cache
def bpe_clip() -> Clip:
    """A small model with CLIP's own tokenizer."""
    torch.manual_seed(0)
    tokenizer = get_tokenizer("clip")
    text_cfg = {**TEXT, "vocab_size": tokenizer.vocab_size}
    model = build_model({"embed_dim": 32, "vision_cfg": VIT, "text_cfg": text_cfg})
    return replace(_whole(model, VIT["image_size"]), tokenizer=tokenizer)


@lru_cache
def text_clip(name: str) -> Clip:
    """A small image tower and the text tower `name` of `TEXTS`."""
    torch.manual_seed(0)
    both_ways = {"no_causal_mask": True, "pool_type": "last"} if name == "both ways" else {}
    cfg = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": {**TEXT, **both_ways}}
    model = build_model({**cfg, "custom_text": name != "causal"})
    if name.startswith("bert"):
        config = transformers.BertConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=77,
        )
        model.text = open_clip.hf_model.HFTextEncoder(
            "", 32, config=config, pooler_type="cls_pooler", proj_type="linear"
        )
    if name.endswith(" registers"):
        give_corners(model.text, CornerTokens(3, mask=False, kind="register"))
    return _whole(model, VIT["image_size"])


def _whole(model: nn.Module, size: int) -> Clip:
    """The module with the tiny model's tokenizer, and norms that are not the identity."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    tiny = new_tiny()
    card = {**tiny.card, "preprocess": {**tiny.card["preprocess"], "size": [size, size]}}
    transform = open_clip.transform.image_transform(size, is_train=False)
    return replace(tiny, model=model.eval(), card=card, name="small", preprocess=transform)
