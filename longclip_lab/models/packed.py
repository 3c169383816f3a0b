"""A causal text tower on texts laid end to end: no padding at all, for the CPU.

Sorting and trimming leave the padding within a batch. Here the tokens of all texts of a batch form
one long row for the layers that work on each token alone; only the attention is run text by text
(texts of one length together). The last block is run for the end tokens only, as nothing else of
it is read. On a GPU many small attentions cost more than the padding: there it is not used.

B texts, T tokens, P all tokens of the batch, W width, H heads, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from longclip_lab.models.text_tower import can_trim, end_positions, project, text_tower


def can_pack(model: nn.Module) -> bool:
    """True if `encode_packed` gives the model's text features: a causal tower of plain blocks."""
    return can_trim(model) and all(
        type(block) is ResidualAttentionBlock and block.attn.in_proj_weight is not None
        for block in text_tower(model).transformer.resblocks
    )


def encode_packed(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Text features [B, D] of a model that `can_pack`, as `encode_tokens` gives them.

    Runs the parts of the blocks, not the blocks: hooks on these are not called.
    """
    tower = text_tower(model)
    lengths_B = end_positions(model, tokens_BT) + 1
    order_B = lengths_B.argsort(stable=True)
    lengths_B = lengths_B[order_B]
    used_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B.unsqueeze(1)
    dtype = tower.transformer.get_cast_dtype()
    states_PW = tower.token_embedding(tokens_BT[order_B][used_BT]).to(dtype)
    states_PW = states_PW + tower.positional_embedding[used_BT.nonzero()[:, 1]].to(dtype)
    groups = torch.stack(lengths_B.unique_consecutive(return_counts=True), dim=1).tolist()
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        states_PW = _finish(block, states_PW, _attention(block, states_PW, groups))
    ends_B = lengths_B.cumsum(0) - 1
    ends_BW = _finish(last, states_PW[ends_B], _end_attention(last, states_PW, ends_B, groups))
    features_BD = project(tower, ends_BW)
    return torch.empty_like(features_BD).index_copy_(0, order_B, features_BD)


def _attention(
    block: ResidualAttentionBlock, states_PW: torch.Tensor, groups: list[list[int]]
) -> torch.Tensor:
    """Causal attention within each text; `groups` lists (length, number of texts of it)."""
    attn = block.attn
    projected = F.linear(block.ln_1(states_PW), attn.in_proj_weight, attn.in_proj_bias)
    attended = []
    for part, (length, count) in zip(projected.split(_sizes(groups)), groups, strict=True):
        query, key, value = _heads(part, 3, attn.num_heads, length, count)
        values_BHTW = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended.append(values_BHTW.transpose(1, 2).reshape(len(part), -1))
    return torch.cat(attended)


def _end_attention(
    block: ResidualAttentionBlock,
    states_PW: torch.Tensor,
    ends_B: torch.Tensor,
    groups: list[list[int]],
) -> torch.Tensor:
    """What the end token of each text attends to: all of its text."""
    attn, width = block.attn, states_PW.shape[1]
    normed_PW = block.ln_1(states_PW)
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    projected = F.linear(normed_PW, weight[width:], bias[width:])
    queries_BW = F.linear(normed_PW[ends_B], weight[:width], bias[:width])
    parts = projected.split(_sizes(groups))
    queries = queries_BW.split([count for _, count in groups])
    attended = []
    for part, query_BW, (length, count) in zip(parts, queries, groups, strict=True):
        key, value = _heads(part, 2, attn.num_heads, length, count)
        (query,) = _heads(query_BW, 1, attn.num_heads, 1, count)
        attended.append(F.scaled_dot_product_attention(query, key, value).reshape(count, -1))
    return torch.cat(attended)


def _finish(
    block: ResidualAttentionBlock, states_PW: torch.Tensor, attended_PW: torch.Tensor
) -> torch.Tensor:
    """The rest of a block, which looks at each token alone."""
    states_PW = states_PW + block.ls_1(block.attn.out_proj(attended_PW))
    return states_PW + block.ls_2(block.mlp(block.ln_2(states_PW)))


def _heads(
    projected: torch.Tensor, parts: int, heads: int, length: int, count: int
) -> torch.Tensor:
    """Packed projections of one length to [parts, count, H, length, W / H]."""
    return projected.view(count, length, parts, heads, -1).permute(2, 0, 3, 1, 4)


def _sizes(groups: list[list[int]]) -> list[int]:
    return [length * count for length, count in groups]
