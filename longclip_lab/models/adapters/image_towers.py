"""Image towers of released checkpoints, rebuilt on timm from the shapes of their weights.

Each function takes the weights under the tower's own names, without its prefix, and returns a timm
model that gives one feature a picture, with its weights, and the size of its pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from timm.models import beit, swin_transformer, vision_transformer
from torch import nn

from longclip_lab.models.adapters.layers import count_layers
from longclip_lab.models.filling import fill
from longclip_lab.models.left_out import leave_out

HEAD_WIDTH = 64
_EPS_6 = partial(nn.LayerNorm, eps=1e-6)
_BUFFERS = re.compile(r".*(relative_position_index|attn_mask)$")
_PATCH_OF_SWIN, _STAGE = 4, "layers.0.blocks"


def vit(weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    """BLIP's ViT, read off at its class token after the last layer norm.

    Followed: salesforce/BLIP, models/vit.py; sail-sg/ptp, src/blip_src/models/vit.py.
    """
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    size = patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    tower = vision_transformer.VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=count_layers(weights, r"blocks\.(\d+)\."),
        num_heads=max(width // HEAD_WIDTH, 1),
        num_classes=0,
        global_pool="token",
        norm_layer=_EPS_6,
    )
    fill(tower, weights)
    return tower, size


def swin(weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    """X-VLM's Swin, read off as the mean of its last patches.

    The size of the pictures is seen in the stored masks of the shifted windows; without these it
    is 32 windows' sides, as in all Swins that were released (7 for 224, 12 for 384).

    Followed: zengyan-97/X2-VLM, models/swin_transformer.py, which is Microsoft's.
    """
    depths = []
    while count_layers(weights, rf"layers\.{len(depths)}\.blocks\.(\d+)\."):
        depths.append(count_layers(weights, rf"layers\.{len(depths)}\.blocks\.(\d+)\."))
    tables = [
        weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"]
        for stage in range(len(depths))
    ]
    window = (round(len(tables[0]) ** 0.5) + 1) // 2
    mask = weights.get(f"{_STAGE}.1.attn_mask")
    side = 8 if mask is None else round(len(mask) ** 0.5)
    size = side * window * _PATCH_OF_SWIN
    tower = swin_transformer.SwinTransformer(
        img_size=size,
        patch_size=_PATCH_OF_SWIN,
        embed_dim=len(weights["patch_embed.proj.weight"]),
        depths=tuple(depths),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=window,
        num_classes=0,
    )
    parameters = {name: value for name, value in weights.items() if not _BUFFERS.match(name)}
    fill(tower, swin_transformer.checkpoint_filter_fn(parameters, tower))
    return tower, size


def beit2(weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    """X2-VLM's BEiT-2, read off as the mean of its patches, each of them normalised first.

    timm's own order is mean, then norm; with its norm in the place of the last blocks' it is
    X2-VLM's.

    Followed: zengyan-97/X2-VLM, models/beit2.py.
    """
    table = weights["blocks.0.attn.relative_position_bias_table"]
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    size = patch * ((round((len(table) - 3) ** 0.5) + 1) // 2)
    tower = beit.Beit(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=count_layers(weights, r"blocks\.(\d+)\."),
        num_heads=table.shape[1],
        num_classes=0,
        global_pool="avg",
        use_fc_norm=False,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        init_values=0.1,
        norm_layer=_EPS_6,
    )
    parameters = {
        re.sub("^fc_norm", "norm", name): value
        for name, value in weights.items()
        if not _BUFFERS.match(name)
    }
    fill(tower, leave_out(parameters, {"mask_token"})[0])
    return tower, size
