"""A causal text tower on texts laid end to end: no padding at all, for the CPU.

Sorting and trimming leave the padding within a batch. Here the tokens of all texts of a batch form
one long row for the layers that work on each token alone; only the attention is run text by text
(texts of one length together). The last block is run for the end tokens only, as nothing else of
it is read. On a GPU many small attentions cost more than the padding: there it is not used.
Serves training as well as inference: see `benchmarks/official_step.py`.

B texts, T tokens, P all tokens of the batch, W width, H heads, X width of a head, D embedding.
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

    Gradients flow as there. Runs the parts of the blocks, not the blocks: hooks on these are not
    called, and what works by them, FSDP2 and gradient checkpointing, does not.
    """
    tower = text_tower(model)
    lengths_B = end_positions(model, tokens_BT) + 1
    order_B = lengths_B.argsort(stable=True)
    lengths_B = lengths_B[order_B]
    used_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B.unsqueeze(1)
    dtype = tower.transformer.get_cast_dtype()
    states_PW = tower.token_embedding(tokens_BT[order_B][used_BT]).to(dtype)
    positions_P = used_BT.nonzero()[:, 1]
    states_PW = states_PW + F.embedding(positions_P, tower.positional_embedding).to(dtype)
    features_BD = _features(tower, states_PW, lengths_B)
    return torch.empty_like(features_BD).index_copy_(0, order_B, features_BD)


def encode_whole(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """As `encode_packed`, for texts that all have T tokens.

    The layer of the token embeddings is called with [B, T], as the model calls it: for those who
    put other embeddings in its place.
    """
    tower = text_tower(model)
    dtype = tower.transformer.get_cast_dtype()
    batch, length = tokens_BT.shape
    states_BTW = tower.token_embedding(tokens_BT).to(dtype)
    states_BTW = states_BTW + tower.positional_embedding[:length].to(dtype)
    lengths_B = torch.full((batch,), length, device=tokens_BT.device)
    return _features(tower, states_BTW.flatten(0, 1), lengths_B)


def _features(tower: nn.Module, states_PW: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Text features [B, D] from embedded tokens laid end to end, texts of one length together."""
    groups = torch.stack(lengths_B.unique_consecutive(return_counts=True), dim=1).tolist()
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        states_PW = finish_block(block, states_PW, _attention(block, states_PW, groups))
    ends_B = lengths_B.cumsum(0) - 1
    ends_BW = finish_block(last, states_PW[ends_B], _end_attention(last, states_PW, ends_B, groups))
    return project(tower, ends_BW)


def encode_variants(
    model: nn.Module, tokens_BT: torch.Tensor, origin_B: torch.Tensor
) -> torch.Tensor:
    """Text features [B, D] as of `encode_packed`, for texts that begin as others of them do.

    `origin_B` holds for each text the row of the one that it is a variant of, its own row for one
    that is no variant. In a causal tower the states of a beginning that both share are the same:
    of a variant only the tokens from the first difference on are run, for half the price where a
    word is taken away at every place. Without gradients it differs from `encode_packed` in nothing
    but rounding.
    """
    tower = text_tower(model)
    lengths_B = end_positions(model, tokens_BT) + 1
    shared_B = (tokens_BT == tokens_BT[origin_B]).cumprod(dim=1).sum(dim=1)
    shared_B = torch.minimum(shared_B, lengths_B - 1)  # the end token is always run
    shared_B[origin_B] = 0
    place_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    own_BT = (place_T >= shared_B.unsqueeze(1)) & (place_T < lengths_B.unsqueeze(1))
    dtype = tower.transformer.get_cast_dtype()
    states_PW = tower.token_embedding(tokens_BT[own_BT]).to(dtype)
    states_PW = states_PW + F.embedding(own_BT.nonzero()[:, 1], tower.positional_embedding).to(
        dtype
    )
    origins, shared = origin_B.tolist(), shared_B.tolist()
    counts = (lengths_B - shared_B).tolist()
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        attended_PW = _variants_attention(block, states_PW, origins, shared, counts)
        states_PW = finish_block(block, states_PW, attended_PW)
    own = states_PW.split(counts)
    states_PW = torch.cat(
        [part for row, many in enumerate(shared) for part in (own[origins[row]][:many], own[row])]
    )
    ends_B = lengths_B.cumsum(0) - 1
    groups = [[length, 1] for length in lengths_B.tolist()]
    ends_BW = _end_attention(last, states_PW, ends_B, groups)
    return project(tower, finish_block(last, states_PW[ends_B], ends_BW))


def _variants_attention(
    block: ResidualAttentionBlock,
    states_PW: torch.Tensor,
    origins: list[int],
    shared: list[int],
    counts: list[int],
) -> torch.Tensor:
    """Causal attention of every text's own tokens, which see the shared ones before them."""
    attn = block.attn
    projected = F.linear(block.ln_1(states_PW), attn.in_proj_weight, attn.in_proj_bias)
    texts = [
        part.view(1, len(part), 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        for part in projected.split(counts)
    ]
    longest = max(many + count for many, count in zip(shared, counts, strict=True))
    mask_TT = projected.new_full((longest, longest), float("-inf")).triu(1)
    attended = []
    for origin, many, text in zip(origins, shared, texts, strict=True):
        query, key, value = text
        if many:
            _, before_key, before_value = texts[origin][:, :, :, :many]
            key = torch.cat([before_key, key], dim=2)
            value = torch.cat([before_value, value], dim=2)
        end = key.shape[2]
        values_BHTX = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_TT[many:end, :end]
        )
        attended.append(values_BHTX.transpose(1, 2).flatten(2)[0])
    return attn.out_proj(torch.cat(attended))


def _attention(
    block: ResidualAttentionBlock, states_PW: torch.Tensor, groups: list[list[int]]
) -> torch.Tensor:
    """Causal attention within each text; `groups` lists (length, number of texts of it)."""
    attn = block.attn
    projected = F.linear(block.ln_1(states_PW), attn.in_proj_weight, attn.in_proj_bias)
    # Split and joined, not sliced and written: the gradient of every slice would be as long as P.
    parts = projected.split([length * count for length, count in groups])
    attended = []
    for part, (length, count) in zip(parts, groups, strict=True):
        heads = part.view(count, length, 3, attn.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        values_BHTX = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended.append(values_BHTX.transpose(1, 2).reshape(length * count, -1))
    return attn.out_proj(torch.cat(attended))


def _end_attention(
    block: ResidualAttentionBlock,
    states_PW: torch.Tensor,
    ends_B: torch.Tensor,
    groups: list[list[int]],
) -> torch.Tensor:
    """What each end token attends to: all of its text.

    With one query a text it is cheaper to take the query through the key projection than every
    token: q . (K n + b) = (K^T q) . n + q . b, where the last term is the same for all tokens and
    leaves the softmax as it is. Likewise the values are projected after they are summed up.
    """
    attn = block.attn
    normed_PW = block.ln_1(states_PW)
    project_query, *key_and_value = attn.in_proj_weight.chunk(3)
    key_HXW, value_HXW = (part.unflatten(0, (attn.num_heads, -1)) for part in key_and_value)
    query_bias, _, value_bias = attn.in_proj_bias.chunk(3)
    query_BW = F.linear(normed_PW[ends_B], project_query, query_bias)
    query_BHX = query_BW.unflatten(1, (attn.num_heads, -1))
    query_BHW = torch.einsum("bhx,hxw->bhw", query_BHX, key_HXW)
    texts = normed_PW.split([length * count for length, count in groups])
    queries = query_BHW.split([count for _, count in groups])
    read = []
    for text_PW, query, (length, count) in zip(texts, queries, groups, strict=True):
        text_BTW = text_PW.view(count, length, -1)
        scale = query_BHX.shape[2] ** -0.5
        read.append(F.scaled_dot_product_attention(query, text_BTW, text_BTW, scale=scale))
    values_BHX = torch.einsum("bhw,hxw->bhx", torch.cat(read), value_HXW)
    return attn.out_proj(values_BHX.flatten(1) + value_bias)


def finish_block(
    block: ResidualAttentionBlock, states_PW: torch.Tensor, attended_PW: torch.Tensor
) -> torch.Tensor:
    """The rest of a block, which looks at each token alone."""
    states_PW = states_PW + block.ls_1(attended_PW)
    return states_PW + block.ls_2(block.mlp(block.ln_2(states_PW)))
