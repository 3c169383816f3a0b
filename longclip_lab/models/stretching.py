"""A model that reads longer texts: the same weights with another table of positions."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from open_clip.transformer import TextTransformer
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.positions import new_positions
from longclip_lab.models.text_tower import pool_type, text_tower

if TYPE_CHECKING:
    from longclip_lab.models.clip import Clip, TextTower

Stretchable = TypeVar("Stretchable", "Clip", "TextTower")


def stretch(
    clip: Stretchable,
    keep: int = 20,
    ratio: float = 4,
    length: int | None = None,
    method: str = "kps",
    seed: int = 0,
) -> Stretchable:
    """A copy of `clip` that reads keep + (T - keep) * ratio tokens; `clip` itself is untouched.

    `clip` may be a text tower alone. Any keep, ratio and `length` go: a `length` that is not the
    one above cuts the stretched table, or carries it on along its last difference. `method` names
    the way, "kps" (knowledge-preserved stretching, the default) or its rivals "linear", "random"
    and "none", see `longclip_lab.models.positions.new_positions`; `seed` is for "random".
    open_clip's own `encode_text` runs at the new length. `card["positions"]` records method, keep,
    ratio, length; keep is there the number of leading positions that were left as they are (0 for
    "none", where nothing was added that they could be told from).

    Source: Long-CLIP (Zhang et al., ECCV 2024), section 3.2.

    Raises LabError if keep >= T, ratio < 1, length <= keep, for more than 16,384 positions, or if
    the text tower has no table of positions of its own (towers of transformers, CoCa).
    """
    tower = text_tower(clip.model)
    if pool_type(clip.model) == "hub" or getattr(tower, "cls_emb", None) is not None:
        raise LabError(
            f"The text tower of '{clip.name}' has no plain table of learned positions to stretch."
        )
    old_TW = tower.positional_embedding.detach()
    positions_LW = new_positions(old_TW, method, keep, ratio, length, seed)
    card = copy.deepcopy(clip.card)
    card["positions"] = _positions_card(method, keep, ratio, len(old_TW), len(positions_LW))
    card["model_cfg"]["text_cfg"]["context_length"] = len(positions_LW)
    return replace(
        clip,
        model=replace_positions(copy.deepcopy(clip.model), positions_LW),
        name=clip.name if method == "none" else f"{clip.name}+{method}{len(positions_LW)}",
        card=card,
    )


def replace_positions(model: nn.Module, positions_LW: torch.Tensor) -> nn.Module:
    """Give `model` (changed in place) another table of positions and all that depends on it.

    open_clip keeps the length in up to three attributes and, for causal towers, in the mask.
    """
    tower = text_tower(model)
    length = len(positions_LW)
    trained = tower.positional_embedding.requires_grad
    tower.positional_embedding = nn.Parameter(positions_LW.clone(), requires_grad=trained)
    taken = tower.corner.shift if hasattr(tower, "corner") else 0
    model.context_length = tower.context_length = length - taken
    if isinstance(tower, TextTransformer):
        tower.num_pos = length
    if tower.attn_mask is not None:
        mask = torch.full((length, length), float("-inf")).triu_(1)
        tower.attn_mask = mask.to(tower.attn_mask)
    return model


def _positions_card(
    method: str, keep: int, ratio: float, old_length: int, length: int
) -> dict[str, Any]:
    kept = {"kps": keep, "linear": 0, "random": min(old_length, length), "none": 0}
    ratios = {"kps": ratio, "linear": length / old_length, "random": 1, "none": 1}
    return {"method": method, "keep": kept[method], "ratio": ratios[method], "length": length}
