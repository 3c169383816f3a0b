"""The world's counterpart of a tower pretrained on ImageNet-21k: one feature that knows the scene.

The dense-supervised tiny tower (`tiny-tower`) knows of every cell what is in it, but the mean over
its patches does not say which thing is red and which is large: those facts are bound cell by cell.
A neck looks at each cell by itself and only then adds them up, so that a pair of attributes becomes
a direction of its own.

B batch, L patch tokens, D width, E features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from longclip_lab.models.tiny import IMAGE_SIZE, WIDTH, ConvStem

__all__ = ["SCENE_MODEL", "CellNeck", "SceneVisionTransformer"]

SCENE_MODEL = "longclip_lab_tiny_scenes_vit"
SCENE_WIDTH, HIDDEN = 256, 512
PATCHES, CELLS = 6, 3


class CellNeck(nn.Module):
    """Patch tokens [B, 36, D] of the 6 x 6 grid to one feature [B, E]: a perceptron for each cell
    of 2 x 2 patches, its place added, summed over the nine cells and normalised."""

    def __init__(self, width: int = WIDTH, hidden: int = HIDDEN, features: int = SCENE_WIDTH):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.place = nn.Parameter(0.02 * torch.randn(CELLS * CELLS, hidden))
        self.up = nn.Linear(width, hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, features)

    def forward(self, tokens_BLD: torch.Tensor) -> torch.Tensor:
        return self.sum(cells(tokens_BLD))

    def sum(self, cells_B9D: torch.Tensor) -> torch.Tensor:
        """The same from the nine cells' means."""
        states = F.gelu(self.up(self.norm(cells_B9D)) + self.place)
        summed_BE = self.down(F.gelu(self.middle(states))).mean(dim=1)
        return F.layer_norm(summed_BE, summed_BE.shape[-1:])


def cells(tokens_BLD: torch.Tensor) -> torch.Tensor:
    """Means [B, 9, D] of the patches in each cell of the world's 3 x 3 grid."""
    grid_BDHW = tokens_BLD.transpose(1, 2).unflatten(2, (PATCHES, PATCHES))
    return F.avg_pool2d(grid_BDHW, PATCHES // CELLS).flatten(2).transpose(1, 2)


class SceneVisionTransformer(VisionTransformer):
    """timm's vision transformer with a `CellNeck` in place of the mean over patches."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.neck = CellNeck(self.embed_dim)
        self.num_features = self.head_hidden_size = SCENE_WIDTH

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        features_BE = self.neck(x)
        return features_BE if pre_logits else self.head(features_BE)


default_cfgs = generate_default_cfgs(
    {
        SCENE_MODEL: {
            "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
            "pool_size": None,
            "fixed_input_size": True,
            "num_classes": 0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "classifier": "head",
            "first_conv": "patch_embed.layers.0",
        }
    }
)


@register_model
def longclip_lab_tiny_scenes_vit(pretrained: bool = False, **kwargs: Any) -> SceneVisionTransformer:
    """The tiny ViT (width 128, depth 3, 6 x 6 patches) with a neck to 256 features."""
    arguments = {
        "img_size": IMAGE_SIZE,
        "patch_size": 12,
        "embed_dim": WIDTH,
        "depth": 3,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
        "embed_layer": ConvStem,
        "num_classes": 0,
    }
    return build_model_with_cfg(
        SceneVisionTransformer, SCENE_MODEL, pretrained, **{**arguments, **kwargs}
    )
