"""open_clip's vision transformers up to what is read of them: the last block's class token.

Of the last block's patches nothing is read but their keys and values. Their queries, their outputs
and their MLP, some four fifths of the block, are left out, forwards and backwards.

B batch, P image tokens (class token first), W width, D embedding, H W picture.
"""

from __future__ import annotations

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from longclip_lab.models.packed import finish_block


def can_end_at_class(visual: nn.Module) -> bool:
    """True if `encode_at_class` gives the tower's features: plain blocks, the class token read."""
    if type(visual) is not VisionTransformer or visual.attn_pool is not None:
        return False
    transformer = visual.transformer
    last = transformer.resblocks[-1]
    return (
        visual.pool_type == "tok"
        and not visual.output_tokens
        and not transformer.grad_checkpointing
        and getattr(transformer, "batch_first", False)
        and type(last) is ResidualAttentionBlock
        and not hasattr(last, "ln_1_kv")
    )


def encode_at_class(visual: VisionTransformer, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """Image features [B, D] of a tower that `can_end_at_class`, as it gives them itself.

    Gradients flow as there. Hooks on the tower, its transformer and its last block are not called,
    and what works by them, FSDP2 and gradient checkpointing, does not.
    """
    patches_BPW = visual.conv1(pixels_B3HW).flatten(2).mT
    class_B1W = visual.class_embedding.to(patches_BPW.dtype).expand(len(patches_BPW), 1, -1)
    states_BPW = torch.cat([class_B1W, patches_BPW], dim=1)
    states_BPW = states_BPW + visual.positional_embedding.to(states_BPW.dtype)
    states_BPW = visual.ln_pre(visual.patch_dropout(states_BPW))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        states_BPW = block(states_BPW)
    normed_BPW = last.ln_1(states_BPW)
    read_B1W, _ = last.attn(normed_BPW[:, :1], normed_BPW, normed_BPW, need_weights=False)
    class_BW = visual.ln_post(finish_block(last, states_BPW[:, 0], read_B1W[:, 0]))
    return class_BW if visual.proj is None else class_BW @ visual.proj
