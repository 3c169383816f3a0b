"""Every patch and every token in the space that pictures and texts share.

B batch, T tokens, P patches, h w rows and columns of the patch grid, W width, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import ClsPooler, HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.models.encoding import evaluating
from longclip_lab.models.text_tower import project, text_tower


@dataclass(frozen=True)
class PatchFeatures:
    """Patches [B, h, w, D] and pictures [B, D] in shared space, not normalised.

    `adds_up` is True if the mean over the patches is the picture's feature.
    """

    patches_BhwD: torch.Tensor
    images_BD: torch.Tensor

    @property
    def adds_up(self) -> bool:
        gap_BD = self.patches_BhwD.mean(dim=(1, 2)) - self.images_BD
        return bool(gap_BD.norm() < 1e-3 * self.images_BD.norm())


def patch_features(clip: Clip, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    """What each patch puts into the picture's feature, as far as the tower lets that be said.

    A tower ends in a pooling of the last layer's tokens, a norm and a projection. Here each patch
    token takes that way out on its own.

    - Average pooling: the mean over the patches is exactly the picture's feature, also where the
      norm stands behind the pooling (timm's order, and the tiny model's): such a norm divides by
      the deviation of the mean token, and here it divides every patch by just that number.
    - Class token: the patches take the class token's way out. They were never trained to be read
      off, so what comes of it is to be measured, not assumed.
    - Attention pooling (CLIP's ResNets, SigLIP): the value and output projections of the pool, as
      with all attention on this one patch (MaskCLIP, Zhou et al., ECCV 2022, Section 3.2).
    - Other poolings (maximum; ConvNeXt's): the tower's head on a picture of this patch alone.

    Raises LabError for a tower that keeps no grid of patches to its end.
    """
    visual = clip.model.visual
    pixels_B3HW = pixels_B3HW.to(clip.device)
    with evaluating(clip.model):
        if isinstance(visual, TimmModel):
            return _timm_patches(visual, pixels_B3HW)
        if isinstance(visual, VisionTransformer):
            return _transformer_patches(visual, pixels_B3HW)
        if isinstance(visual, ModifiedResNet):
            return _resnet_patches(visual, pixels_B3HW)
    raise LabError(f"{type(visual).__name__} is no image tower whose patches are known here.")


def token_features(clip: Clip, ids_BT: torch.Tensor) -> torch.Tensor:
    """The last layer's state at each token, taken the way out of the pooled one: [B, T, D].

    The row at the pooled position (end token, or [CLS]) is the text's feature. All others were
    never trained to be read off. In a causal tower a token's state knows what stands before it
    and nothing of what follows; in BERT it knows the whole text. T is no more than the longest
    text of the batch asks for.

    Raises LabError for a text tower of another make.
    """
    tower = text_tower(clip.model)
    if not isinstance(tower, HFTextEncoder) and not hasattr(tower, "ln_final"):
        raise LabError(f"{type(tower).__name__} is no text tower whose tokens are known here.")
    with evaluating(clip.model), _outputs(tower.transformer) as seen:
        clip.encode_text(ids_BT)
    (states,) = seen
    if not isinstance(tower, HFTextEncoder):
        return project(tower, states)[:, : ids_BT.shape[1]]
    states_BTW = states.last_hidden_state[:, : ids_BT.shape[1]]  # corner tokens stand behind
    pooler = getattr(tower.transformer, "pooler", None)
    if isinstance(tower.pooler, ClsPooler) and tower.pooler.use_pooler_output and pooler:
        states_BTW = pooler(states_BTW.flatten(0, 1).unsqueeze(1)).view_as(states_BTW)
    return tower.proj(states_BTW)


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[Any]]:
    """A list that collects what `module` returns inside the block."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _transformer_patches(visual: VisionTransformer, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        raise LabError("An image tower with two attention pools has no patches in shared space.")
    with _outputs(visual.transformer) as seen:
        out = visual(pixels_B3HW)
    tokens_BPW = seen[0][:, 1:]
    if visual.attn_pool is not None:  # over one token alone, attention is all on it
        alone = visual.attn_pool(tokens_BPW.flatten(0, 1).unsqueeze(1))[:, 0]
        normed_BPW = visual.ln_post(alone).unflatten(0, tokens_BPW.shape[:2])
    elif visual.pool_type == "avg" and visual.final_ln_after_pool:
        normed_BPW = _normed_as_mean(visual.ln_post, tokens_BPW)
    else:
        normed_BPW = visual.ln_post(tokens_BPW)
    features_BPD = normed_BPW if visual.proj is None else normed_BPW @ visual.proj
    images_BD = out[0] if isinstance(out, tuple) else out
    return PatchFeatures(features_BPD.unflatten(1, tuple(visual.grid_size)), images_BD)


def _timm_patches(visual: TimmModel, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    trunk = visual.trunk
    states = trunk.forward_features(pixels_B3HW)
    images_BD = visual.head(trunk.forward_head(states))
    if states.ndim == 3:
        features_BPD = _timm_tokens(visual, states)
        grid = tuple(trunk.patch_embed.grid_size)
    elif states.ndim == 4:  # convolutions: the head on one cell at a time
        last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        cells_BhwW = states if last else states.permute(0, 2, 3, 1)
        grid = tuple(cells_BhwW.shape[1:3])
        alone = cells_BhwW.flatten(0, 2)
        alone = alone[:, None, None] if last else alone[:, :, None, None]
        features_BPD = visual.head(trunk.forward_head(alone))
    else:
        raise LabError(f"{type(trunk).__name__} keeps no grid of patches to its end.")
    return PatchFeatures(features_BPD.view(len(images_BD), *grid, -1), images_BD)


def _timm_tokens(visual: TimmModel, states_BTW: torch.Tensor) -> torch.Tensor:
    """The patches among the tokens of a timm transformer through its head: [B, P, D]."""
    trunk = visual.trunk
    prefix = trunk.num_prefix_tokens  # class and register tokens
    tokens_BPW = states_BTW[:, prefix:]
    norm = getattr(trunk, "fc_norm", None)
    averages = trunk.global_pool == "avg" and getattr(trunk, "attn_pool", None) is None
    if averages and isinstance(norm, nn.LayerNorm | nn.Identity):
        return visual.head(trunk.head(_normed_as_mean(norm, tokens_BPW)))
    # timm's own head, on one patch at a time; the patch stands in for the prefix tokens too, as
    # one of them may be what is pooled.
    alone = tokens_BPW.flatten(0, 1).unsqueeze(1).expand(-1, prefix + 1, -1)
    return visual.head(trunk.forward_head(alone)).unflatten(0, tokens_BPW.shape[:2])


def _normed_as_mean(norm: nn.LayerNorm | nn.Identity, tokens_BPW: torch.Tensor) -> torch.Tensor:
    """Every token normed with the deviation of their mean, so that the mean is the normed mean."""
    if isinstance(norm, nn.Identity):
        return tokens_BPW
    variance_B11 = tokens_BPW.mean(dim=1, keepdim=True).var(-1, correction=0, keepdim=True)
    centred_BPW = tokens_BPW - tokens_BPW.mean(dim=-1, keepdim=True)
    normed_BPW = centred_BPW * (variance_B11 + norm.eps).rsqrt()
    normed_BPW = normed_BPW if norm.weight is None else normed_BPW * norm.weight
    return normed_BPW if norm.bias is None else normed_BPW + norm.bias


def _resnet_patches(visual: ModifiedResNet, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    pool = visual.attnpool
    with _outputs(visual.layer4) as seen:
        images_BD = visual(pixels_B3HW)
    states_BhwW = seen[0].permute(0, 2, 3, 1)
    positions_hwW = pool.positional_embedding[1:].view(states_BhwW.shape[1:])
    return PatchFeatures(pool.c_proj(pool.v_proj(states_BhwW + positions_hwW)), images_BD)
