"""What an open_clip module is made of, as far as other libraries ask: or why they cannot have it.

The facts are read from the module itself, not from its config, so that nothing is promised that
the module does not do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_clip.transformer import (
    LayerNorm,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
)
from open_clip.transformer import QuickGELU as _QuickGELU
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.text_tower import pool_type, text_tower

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


def end_id(model: nn.Module) -> int:
    """The token at which a text is read off: the largest id, or the one that was named."""
    tower = text_tower(model)
    if pool_type(model) != "eos":
        return int(tower.vocab_size) - 1
    return int(tower.eos_id if isinstance(tower, TextTransformer) else tower.text_eos_id)


def refuse(name: str, format: str, reason: Any) -> LabError:
    """One sentence for every way of being unfit."""
    return LabError(f"'{name}' cannot be written as '{format}': {str(reason).rstrip('.')}.")


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise LabError(reason)
