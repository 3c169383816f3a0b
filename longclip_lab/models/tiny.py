"""The tiny CLIP of the lab: 72 x 72 pictures, one word one token, small enough for a laptop.

B batch, C channels, H W picture, L patch tokens, D width.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

__all__ = ["IMAGE_MODEL", "IMAGE_SIZE", "ConvStem", "build_tiny", "tiny_config"]

IMAGE_SIZE = 72
WIDTH = 128
IMAGE_MODEL = "longclip_lab_tiny_vit"


class ConvStem(nn.Module):
    """Pictures [B, C, 72, 72] to patch tokens [B, 36, D] by three overlapping convolutions.

    A stem of non-overlapping patches learns the colours of small drawn objects but hardly their
    kinds, hence the overlap. GroupNorm rather than BatchNorm: running statistics would drift while
    a lesson fine-tunes for a minute. Stands in for timm's `PatchEmbed`, with its attributes.
    """

    def __init__(
        self,
        img_size: int = IMAGE_SIZE,
        patch_size: int = 12,
        in_chans: int = 3,
        embed_dim: int = WIDTH,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if patch_size != 12 or img_size % 12 or dynamic_img_pad:
            raise ValueError("ConvStem has a total stride of 12 and takes a multiple of 12 pixels.")
        factory = {"device": device, "dtype": dtype}
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, 48, kernel_size=5, stride=3, padding=1, bias=False, **factory),
            nn.GroupNorm(6, 48, **factory),
            nn.GELU(),
            nn.Conv2d(48, 96, kernel_size=3, stride=2, padding=1, bias=False, **factory),
            nn.GroupNorm(6, 96, **factory),
            nn.GELU(),
            nn.Conv2d(96, embed_dim, kernel_size=3, stride=2, padding=1, bias=bias, **factory),
        )

    @property
    def field_shift(self) -> tuple[float, float]:
        """How far the middle of what a patch token sees lies from the middle of its cell: (x, y)
        in pixels. The convolutions' padding is not symmetric to their strides.

        >>> ConvStem().field_shift
        (-4.5, -4.5)
        """
        middle, jump = 0.5, 1
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                middle += ((layer.kernel_size[0] - 1) / 2 - layer.padding[0]) * jump
                jump *= layer.stride[0]
        return middle - jump / 2, middle - jump / 2

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patch tokens for a picture of `img_size` (height, width) pixels."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels a patch token, as timm asks for it."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels_BCHW).flatten(2).transpose(1, 2)


default_cfgs = generate_default_cfgs(
    {
        IMAGE_MODEL: {
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
def longclip_lab_tiny_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A ViT of width 128 and depth 3 over a 6 x 6 grid; its tokens are averaged, no class token."""
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
        VisionTransformer, IMAGE_MODEL, pretrained, **{**arguments, **kwargs}
    )


def tiny_config(vocab_size: int, context_length: int = 77) -> dict[str, Any]:
    """The tiny model's open_clip `model_cfg`: `open_clip.CLIP(**tiny_config(100))` builds it."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "timm_model_name": IMAGE_MODEL,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": IMAGE_SIZE,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": WIDTH,
            "heads": 4,
            "layers": 3,
        },
    }


def build_tiny(vocab_size: int, context_length: int = 77) -> open_clip.CLIP:
    """A tiny CLIP with random weights, in training mode; seed it with `torch.manual_seed`.

    Text tower: width 128, 4 heads, 3 layers, causal, pooled at the largest token id.

    >>> model = build_tiny(100)
    >>> model.encode_image(torch.zeros(2, 3, 72, 72)).shape
    torch.Size([2, 128])
    >>> model.encode_text(torch.zeros(2, 77, dtype=torch.long)).shape
    torch.Size([2, 128])
    """
    return open_clip.CLIP(**tiny_config(vocab_size, context_length))
