"""The bundled tiny models: where they are, and their architectures.

The dense-supervised tiny tower (`tiny-tower`) knows of every cell what is in it, but the mean over
its patches does not say which thing is red and which is large: those facts are bound cell by cell.
The neck of `tiny-scenes` looks at each cell by itself and only then adds them up, so that a pair of
attributes becomes a direction of its own.

B batch, C channels, H W image, L patch tokens, D width, E features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import longclip_lab
from longclip_lab.errors import LabError, suggest

# --- Where the models that come with the lab are: beside a clone, or inside an installed wheel ---

_CONFIG = "clip.json"


def data_folder() -> Path:
    """The folder of bundled data: `longclip_lab/_bundled` of a wheel, or `data` of the clone.

    Raises LabError if there is neither.
    """
    package = Path(longclip_lab.__file__).parent
    places = [package / "_bundled", package.parent / "data"]
    for place in places:
        if place.is_dir():
            return place
    raise LabError(
        "The bundled models are missing: neither "
        f"{' nor '.join(str(place) for place in places)} is a folder. Install the wheel or work "
        "in a full clone of the repository."
    )


def bundled_names() -> list[str]:
    """The names of the bundled models, sorted; empty if the bundled data is missing."""
    try:
        folders = data_folder().iterdir()
    except LabError:
        return []
    return sorted(folder.name for folder in folders if (folder / _CONFIG).is_file())


def bundled_folder(name: str) -> Path:
    """The folder of the bundled model `name`.

    Raises LabError for a name that is not bundled, with the near ones.
    """
    folder = data_folder() / name
    if not (folder / _CONFIG).is_file():
        raise LabError(f"No bundled model is called '{name}'. {suggest(name, bundled_names())}")
    return folder


# --- The tiny CLIP of the lab: 72 x 72 pictures, one word one token, small enough for a CPU ---

IMAGE_SIZE = 72
WIDTH = 128
IMAGE_MODEL = "longclip_lab_tiny_vit"
SCENE_MODEL = "longclip_lab_tiny_scenes_vit"

_TIMM_CFG = {
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
# timm's registry looks for exactly this name in the module of a registered model.
default_cfgs = generate_default_cfgs(dict.fromkeys((IMAGE_MODEL, SCENE_MODEL), _TIMM_CFG))


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


@register_model
def longclip_lab_tiny_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A ViT of width 128 and depth 3 over a 6 x 6 grid; its tokens are averaged, no class token."""
    return _tiny_vit(VisionTransformer, IMAGE_MODEL, pretrained, kwargs)


def _tiny_vit(cls: type, name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    sizes = {
        "img_size": IMAGE_SIZE,
        "patch_size": 12,
        "embed_dim": WIDTH,
        "depth": 3,
        "num_heads": 4,
        # A mean over patches gives all of them a gradient from the first step; a class token would
        # first have to learn where to look, and there are minutes only.
        "class_token": False,
        "global_pool": "avg",
        # See `ConvStem`: plain patches hardly tell kinds apart at this size.
        "embed_layer": ConvStem,
        "num_classes": 0,
    }
    return build_model_with_cfg(cls, name, pretrained, **(sizes | options))


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


# --- The world's counterpart of a tower pretrained on ImageNet-21k: one feature of the scene ---

SCENE_WIDTH, HIDDEN = 256, 512
PATCHES, CELLS = 6, 3


class CellNeck(nn.Module):
    """Patch tokens [B, 36, D] of the 6 x 6 grid to one feature [B, E]: a perceptron for each cell
    of 2 x 2 patches, its place added, summed over the nine cells and normalised."""

    def __init__(self, width: int = WIDTH, hidden: int = HIDDEN, features: int = SCENE_WIDTH):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # A sum over cells has no order: what a cell holds and where it is must be in one vector.
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


@register_model
def longclip_lab_tiny_scenes_vit(pretrained: bool = False, **kwargs: Any) -> SceneVisionTransformer:
    """The tiny ViT (width 128, depth 3, 6 x 6 patches) with a neck to 256 features."""
    return _tiny_vit(SceneVisionTransformer, SCENE_MODEL, pretrained, kwargs)
