"""Corner tokens (LoTLIP) and register tokens: reading them off.

B texts, T tokens, m corners, D embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from longclip_lab.models.clip import Clip
from longclip_lab.models.corner_towers import (
    CornerTokens,
)
from longclip_lab.models.text_tower import (
    checked_tokens,
    encode_tokens,
    pool_type,
    text_tower,
    without_padding,
)


def corners_of(clip: Clip) -> CornerTokens | None:
    """What corner or register tokens the text tower of `clip` has; None for a plain one."""
    return getattr(text_tower(clip.model), "corner", None)


def encode_text_corners(clip: Clip, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Token ids to features [B, 1 + m, D], not normalised; gradients flow.

    Row 0 is what `clip.encode_text` gives, rows 1 to m are the corners (or registers). All go
    through the same pooler and projection. A plain model gives [B, 1, D].

    Raises LabError as `clip.encode_text` does.
    """
    return encode_corner_tokens(clip.model, tokens_BT.to(clip.device), clip.tokenizer.pad_id)


def encode_corner_tokens(
    model: nn.Module, tokens_BT: torch.Tensor, pad_id: int = 0
) -> torch.Tensor:
    """`encode_text_corners` for the module alone, as training runs it: [B, 1 + m, D]."""
    tower = text_tower(model)
    if not hasattr(tower, "corner"):
        return encode_tokens(model, tokens_BT, pad_id).unsqueeze(1)
    tokens_BT = checked_tokens(model, tokens_BT)
    if pool_type(model) == "hub":
        tokens_BT = without_padding(model, tokens_BT)
    return tower.encode_corners(tokens_BT)
