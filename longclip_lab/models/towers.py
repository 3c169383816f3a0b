"""Running towers on what is read of them and nothing else: trimmed, packed, up to the class token.

open_clip's own `encode_text` takes only the full context length: a caption of 14 tokens costs as
much as one of 248. A causal tower pooled at the end token never looks behind it, so everything
behind the longest text of the batch can be cut away without changing a feature (`encode_tokens`).

Trimming leaves the padding within a batch. On a CPU the tokens of all texts form one long row for
the layers that work on each token alone; only the attention is run text by text, texts of one
length together (`encode_packed`). On a GPU many small attentions cost more than the padding.
Serves training as well as inference: see `benchmarks/official_step.py`.

Of the last block only the token that is read off is run: nothing else of it is ever looked at but
keys and values. In an image tower that leaves out some four fifths of the block, forwards and
backwards (`encode_at_class`).

B texts or images, T tokens, P all tokens of a batch or the tokens of an image (class token first),
W width, H heads, X width of a head, S states of the frozen part, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.anatomy import frozen_part, pool_type, text_tower

# --- Running an open_clip text tower on no more tokens than the batch needs ---


def can_trim(model: nn.Module) -> bool:
    """True if no token sees a later one and the text is read off at its end token.

    Only such a tower can be trimmed: one that is pooled elsewhere, appends a class token (CoCa),
    or looks both ways reads the padding too. One with corner tokens is not run in these steps
    either, unless its end token neither sees nor makes room for them.
    """
    tower = text_tower(model)
    corner = getattr(tower, "corner", None)
    # Shifted corners move the end token, unmasked ones are read by it.
    if corner is not None and (corner.shift or not corner.mask):
        return False
    # Without a causal mask every token reads the padding behind it.
    if pool_type(model) not in ("argmax", "eos") or tower.attn_mask is None:
        return False
    return getattr(tower, "cls_emb", None) is None


def end_positions(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Where the tower reads off each text: [B], the index of its end token."""
    if pool_type(model) == "eos":
        tower = text_tower(model)
        end_id = tower.eos_id if isinstance(tower, TextTransformer) else tower.text_eos_id
        # argmax gives the first of equals: the text ends at its first end token.
        return (tokens_BT == end_id).int().argmax(dim=-1)
    # OpenAI's code: the end token has the largest id of the vocabulary.
    return tokens_BT.argmax(dim=-1)


def encode_tokens(model: nn.Module, tokens_BT: torch.Tensor, pad_id: int = 0) -> torch.Tensor:
    """Text features [B, D], not normalised, as open_clip computes them for the padded batch.

    Causal towers pooled at the end token (OpenAI's, Long-CLIP's) run on the batch's longest text
    only. Towers of transformers mask their padding and are trimmed to the last token that is not
    padding. All others read the padding too: they get `pad_id` up to the full context length,
    which is what open_clip runs.

    Raises LabError if T is larger than the context length.
    """
    tokens_BT = checked_tokens(model, tokens_BT)
    if pool_type(model) == "hub":
        return model.encode_text(without_padding(model, tokens_BT), normalize=False)
    if not can_trim(model):
        if not hasattr(text_tower(model), "corner"):  # those trim by themselves
            # open_clip's forward of these towers takes the full context only.
            missing = text_tower(model).context_length - tokens_BT.shape[1]
            tokens_BT = F.pad(tokens_BT, (0, missing), value=pad_id)
        return model.encode_text(tokens_BT, normalize=False)
    length = int(end_positions(model, tokens_BT).max()) + 1
    return _encode_causal(model, tokens_BT[:, :length])


def checked_tokens(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """`tokens_BT`, without corner ids where the tower puts its corner tokens in itself.

    Raises LabError for no texts, another shape than [B, T] and too many tokens.
    """
    if tokens_BT.ndim != 2 or tokens_BT.shape[1] == 0:
        raise LabError(f"Expected token ids [B, T], got a tensor of {tuple(tokens_BT.shape)}.")
    tower = text_tower(model)
    if hasattr(tower, "plain_ids"):
        tokens_BT = tower.plain_ids(tokens_BT)
    if tokens_BT.shape[1] > tower.context_length:
        raise LabError(
            f"The texts have {tokens_BT.shape[1]} tokens, but the model reads at most "
            f"{tower.context_length}. Cut them, or stretch the model's positions."
        )
    if len(tokens_BT) == 0:
        raise LabError("Expected at least one text, got none.")
    return tokens_BT


def without_padding(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The columns up to the last token that is no padding, for towers of transformers."""
    padding = text_tower(model).config.pad_token_id
    used_T = (tokens_BT != padding).any(dim=0).nonzero()
    return tokens_BT[:, : int(used_T.max()) + 1 if len(used_T) else 1]


def _encode_causal(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The steps of `CLIP.encode_text` with positions and mask sliced to T."""
    tower = text_tower(model)
    length = tokens_BT.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    states_BTW = tower.token_embedding(tokens_BT).to(dtype)
    states_BTW = states_BTW + tower.positional_embedding[:length].to(dtype)
    # A causal mask of T tokens is the corner of the full one.
    states_BTW = tower.transformer(states_BTW, attn_mask=tower.attn_mask[:length, :length])
    rows_B = torch.arange(len(tokens_BT), device=tokens_BT.device)
    return project(tower, states_BTW[rows_B, end_positions(model, tokens_BT)])


def project(tower: nn.Module, pooled_BW: torch.Tensor) -> torch.Tensor:
    """The states at the end tokens to features [B, D]: the final layer norm and the projection."""
    pooled_BW = tower.ln_final(pooled_BW)
    if tower.text_projection is None:
        return pooled_BW
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(pooled_BW)
    return pooled_BW @ tower.text_projection


# --- A causal text tower on texts laid end to end: no padding at all, for the CPU ---


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
    lengths_B = end_positions(model, tokens_BT) + 1
    used_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B.unsqueeze(1)
    return encode_ragged(model, tokens_BT[used_BT], lengths_B)


def encode_ragged(model: nn.Module, ids_P: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """As `encode_packed`, for texts that are laid end to end already: P tokens, B lengths."""
    tower = text_tower(model)
    # Texts of one length stand together, so that attention takes them in one call.
    order_B = lengths_B.argsort(stable=True)
    texts = ids_P.split(lengths_B.tolist())
    ids_P, lengths_B = torch.cat([texts[row] for row in order_B.tolist()]), lengths_B[order_B]
    starts_B = lengths_B.cumsum(0) - lengths_B
    positions_P = torch.arange(len(ids_P), device=ids_P.device)
    positions_P = positions_P - starts_B.repeat_interleave(lengths_B)
    dtype = tower.transformer.get_cast_dtype()
    states_PW = tower.token_embedding(ids_P).to(dtype)
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
    # The last block is run for the end tokens only: nothing reads its other outputs.
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
    # The product is 1 up to the first difference: how long a beginning both share.
    shared_B = (tokens_BT == tokens_BT[origin_B]).cumprod(dim=1).sum(dim=1)
    shared_B = torch.minimum(shared_B, lengths_B - 1)  # the end token is always run
    # The originals are run whole: their states are what the variants borrow.
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
    # For the last block each text is put together again: borrowed states, then its own.
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
    # One mask for all: its rows from `many` on are those of a text's own tokens.
    longest = max(many + count for many, count in zip(shared, counts, strict=True))
    mask_TT = projected.new_full((longest, longest), float("-inf")).triu(1)
    attended = []
    for origin, many, text in zip(origins, shared, texts, strict=True):
        query, key, value = text
        # Keys and values of the shared beginning come from the original, in every layer anew.
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
    # split and cat: slicing would allocate a gradient as long as P for every slice.
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
    # nn.MultiheadAttention keeps the three projections in one weight, queries first.
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
        # The scale is that of a head's width X; the kernel would take W, which stands last here.
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


# --- A vision transformer up to its class token ---


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
    # The steps of `VisionTransformer.forward`, up to the last block.
    class_B1W = visual.class_embedding.to(patches_BPW.dtype).expand(len(patches_BPW), 1, -1)
    states_BPW = torch.cat([class_B1W, patches_BPW], dim=1)
    states_BPW = states_BPW + visual.positional_embedding.to(states_BPW.dtype)
    states_BPW = visual.ln_pre(visual.patch_dropout(states_BPW))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        states_BPW = block(states_BPW)
    normed_BPW = last.ln_1(states_BPW)
    # One query, the class token's; keys and values of all patches.
    read_B1W, _ = last.attn(normed_BPW[:, :1], normed_BPW, normed_BPW, need_weights=False)
    class_BW = visual.ln_post(finish_block(last, states_BPW[:, 0], read_B1W[:, 0]))
    return class_BW if visual.proj is None else class_BW @ visual.proj


# --- Towers split at what a lock freezes, and every token by itself ---


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
