"""Both towers taken apart: what a lock freezes and what stays on top, and every token by itself.

B batch, P image tokens, T text tokens, S states of the frozen part, D embedding, H W picture.
"""

from __future__ import annotations

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.text_tower import (
    checked_tokens,
    end_positions,
    project,
    text_tower,
    without_padding,
)


def frozen_part(visual: nn.Module) -> nn.Module:
    """What `lock_image_tower` freezes: a timm tower's trunk, all of any other tower."""
    return visual.trunk if isinstance(visual, TimmModel) else visual


def image_states(
    visual: nn.Module, pixels_B3HW: torch.Tensor, tokens: bool = False
) -> torch.Tensor:
    """What the frozen part makes of pictures, [B, S]; with `tokens` of each patch, [B, P, S].

    `finish_image` turns either into features. Class and register tokens are left out of `tokens`.
    Raises LabError for a tower that is not made of tokens.
    """
    part = frozen_part(visual)
    if not tokens:
        return part(pixels_B3HW)
    if isinstance(visual, TimmModel):
        states_BPS = part.forward_features(pixels_B3HW)
        if states_BPS.ndim == 3 and getattr(part, "attn_pool", None) is None:
            return part.fc_norm(states_BPS[:, part.num_prefix_tokens :])
    elif isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        states_BPS = visual.ln_post(_last_states(visual, pixels_B3HW))[:, 1:]
        return states_BPS if visual.proj is None else states_BPS @ visual.proj
    raise LabError(
        f"Token-wise losses need a vision transformer's patch tokens; {type(part).__name__} has "
        "none that could be read off."
    )


def _last_states(visual: VisionTransformer, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = visual.transformer.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        visual(pixels_B3HW)
    finally:
        hook.remove()
    return seen[0]


def finish_image(visual: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Features from `image_states`, not normalised: through a timm tower's own head, if any."""
    return visual.head(states) if isinstance(visual, TimmModel) else states


def encode_image_tokens(model: nn.Module, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """Every patch in the space of the texts, [B, P, D], not normalised (FILIP, section 3.1)."""
    return finish_image(model.visual, image_states(model.visual, pixels_B3HW, tokens=True))


def encode_text_tokens(
    model: nn.Module, tokens_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token in the space of the pictures [B, T, D], not normalised, and which exist [B, T].

    The last layer's states through the tower's projection, without the pooler. Start and end
    count as tokens, padding and learned corner or register tokens do not. T is the longest text.
    Raises LabError as `encode_tokens` does, and for a text tower of another make.
    """
    tokens_BT = checked_tokens(model, tokens_BT)
    tower = text_tower(model)
    if hasattr(tower, "corner"):
        raise LabError("Token-wise losses compare words: use a text tower without corner tokens.")
    if isinstance(tower, HFTextEncoder):
        tokens_BT = without_padding(model, tokens_BT)
        mask_BT = tokens_BT != tower.config.pad_token_id
        states = tower.transformer(input_ids=tokens_BT, attention_mask=mask_BT.long())
        return tower.proj(states.last_hidden_state), mask_BT
    if not hasattr(tower, "ln_final") or tower.attn_mask is None:
        raise LabError(f"{type(tower).__name__} is no text tower whose tokens are known here.")
    ends_B = end_positions(model, tokens_BT)
    length = int(ends_B.max()) + 1
    dtype = tower.transformer.get_cast_dtype()
    states_BTW = tower.token_embedding(tokens_BT[:, :length]).to(dtype)
    states_BTW = states_BTW + tower.positional_embedding[:length].to(dtype)
    states_BTW = tower.transformer(states_BTW, attn_mask=tower.attn_mask[:length, :length])
    mask_BT = torch.arange(length, device=tokens_BT.device) <= ends_B.unsqueeze(1)
    return project(tower, states_BTW), mask_BT
