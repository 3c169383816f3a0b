"""Grad-CAM on the image tower, for the cosine similarity with a text.

B batch, P positions, h w rows and columns of the patch grid, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from longclip_lab.attribution.inputs import Pairs
from longclip_lab.attribution.methods import patch_method
from longclip_lab.attribution.pooling import patch_layout
from longclip_lab.attribution.similarity import unit_texts
from longclip_lab.attribution.values import PatchMap
from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.models.encoding import evaluating


@patch_method(
    "grad-cam",
    about="activations weighted by their channels' mean gradient",
    source="Selvaraju et al., ICCV 2017; captum's LayerGradCam",
    needs_gradient=True,
    imports=("captum.attr",),
)
def grad_cam_maps(pairs: Pairs, layer: int | None = None, relu: bool = True) -> list[PatchMap]:
    """Grad-CAM of the cosine similarity with the text.

    `layer` counts from 0, the patches as they enter the tower: layer n is what its n-th block (of
    a transformer) or n-th stage (of a convolutional tower) gives; -1 is the last. Without `layer`
    it is the last one on whose patches the similarity depends one by one: -1, but -2 where a class
    token is read off, as nothing reads the patches behind the last block. `relu` leaves out what
    lowers the similarity, as the paper does.

    The norms inside a block, which other packages look at, gave maps worse than chance on the
    drawn world, where the stream between the blocks did well; hence the stream.

    Raises LabError for a tower or a layer that is not known here.
    """
    # Here as captum brings matplotlib with it, which costs others of this room their time.
    from captum.attr import LayerGradCam

    clip = pairs.clip
    layer = _last_read(clip) if layer is None else layer
    texts_BD = unit_texts(clip, pairs.texts)
    with evaluating(clip.model), torch.enable_grad(), _as_grid(clip, layer) as grid:
        scores_B1hw = LayerGradCam(_similarity_with(clip), grid).attribute(
            pairs.pixels_B3HW.detach().clone(),
            additional_forward_args=(texts_BD,),
            relu_attributions=relu,
        )
    details = {"layer": layer, "relu": relu}
    return [
        PatchMap("grad-cam", clip.name, image, scores_hw, text, details, pairs.shift)
        for image, scores_hw, text in zip(
            pairs.shown_BSS3, scores_B1hw[:, 0].detach().cpu().numpy(), pairs.texts, strict=True
        )
    ]


def _similarity_with(clip: Clip) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Pictures and unit texts to cosine similarities [B]."""

    def similarity(pixels_B3HW: torch.Tensor, texts_BD: torch.Tensor) -> torch.Tensor:
        return (F.normalize(clip.encode_image(pixels_B3HW), dim=-1) * texts_BD).sum(-1)

    return similarity


@contextmanager
def _as_grid(clip: Clip, layer: int) -> Iterator[nn.Module]:
    """A module that the layer's output passes through as [B, W, h, w] while the block lasts.

    captum averages gradients over all axes behind the second, which is right for convolutions. The
    tokens of a transformer are [B, P, W], so they are turned, shown to captum and turned back.
    """
    grid = nn.Identity()
    channels_last = getattr(getattr(clip.model.visual, "trunk", None), "output_fmt", "") == "NHWC"

    def show(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if output.ndim == 4:
            if channels_last:
                return grid(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return grid(output)
        rows, columns = patch_layout(clip).grid
        prefix = output.shape[1] - rows * columns  # class and register tokens, behind the stem
        first, patches_BPW = output[:, :prefix], output[:, prefix:]
        seen_BWhw = grid(patches_BPW.transpose(1, 2).unflatten(2, (rows, columns)))
        return torch.cat([first, seen_BWhw.flatten(2).transpose(1, 2)], dim=1)

    handle = _layer(clip, layer).register_forward_hook(show)
    try:
        yield grid
    finally:
        handle.remove()


def _layer(clip: Clip, layer: int) -> nn.Module:
    """The module whose output is looked at."""
    visual = clip.model.visual
    trunk = visual.trunk if isinstance(visual, TimmModel) else None
    if isinstance(visual, VisionTransformer):
        layers = [visual.conv1, *visual.transformer.resblocks]
    elif isinstance(visual, ModifiedResNet):
        layers = [visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    elif hasattr(trunk, "blocks") and hasattr(trunk, "patch_embed"):
        layers = [trunk.patch_embed, *trunk.blocks]
    elif getattr(trunk, "feature_info", None):
        layers = [trunk.get_submodule(stage["module"]) for stage in trunk.feature_info]
    else:
        raise LabError(f"{type(visual).__name__} is no image tower whose layers are known here.")
    if not -len(layers) <= layer < len(layers):
        raise LabError(
            f"there is no layer {layer} in the image tower of '{clip.name}': expected 0 (the "
            f"patches) to {len(layers) - 1}; negative numbers count from the end."
        )
    return layers[layer]


def _last_read(clip: Clip) -> int:
    """The last layer on whose patches the feature depends."""
    visual = clip.model.visual
    if isinstance(visual, VisionTransformer):
        return -2 if visual.attn_pool is None and visual.pool_type == "tok" else -1
    return -2 if getattr(getattr(visual, "trunk", None), "global_pool", "") == "token" else -1
