"""Running an open_clip text tower on no more tokens than the batch needs.

open_clip's own `encode_text` takes only the full context length: a caption of 14 tokens costs as
much as one of 248. A causal tower pooled at the end token never looks behind it, so everything
behind the longest text of the batch can be cut away without changing a feature.

B batch, T tokens, D embedding, W width of the tower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import nn

from longclip_lab.errors import LabError


def text_tower(model: nn.Module) -> nn.Module:
    """The module that holds the text tower's parts: `model.text`, or the model where it has none.

    open_clip's `CLIP` keeps the parts on itself, `CustomTextCLIP` in `.text`.
    """
    return getattr(model, "text", model)


def pool_type(model: nn.Module) -> str:
    """How the tower pools: "argmax", "eos", "first", "last"; "hub" for those of transformers."""
    tower = text_tower(model)
    if isinstance(tower, HFTextEncoder):
        return "hub"
    return tower.pool_type if isinstance(tower, TextTransformer) else tower.text_pool_type


def position_table(model: nn.Module) -> torch.Tensor:
    """The text tower's learned positions [T, W], the weights themselves; T may pass the context.

    Raises LabError for a tower of transformers that has no such table.
    """
    tower = text_tower(model)
    if hasattr(tower, "position_table"):
        return tower.position_table
    if not isinstance(tower, HFTextEncoder):
        return tower.positional_embedding
    embeddings = getattr(tower.transformer, "embeddings", None)
    if not isinstance(getattr(embeddings, "position_embeddings", None), nn.Embedding):
        raise LabError(f"A {type(tower.transformer).__name__} has no table of learned positions.")
    return embeddings.position_embeddings.weight


def can_trim(model: nn.Module) -> bool:
    """True if no token sees a later one and the text is read off at its end token.

    Only such a tower can be trimmed: one that is pooled elsewhere, appends a class token (CoCa),
    or looks both ways reads the padding too. One with corner tokens is not run in these steps
    either, unless its end token neither sees nor makes room for them.
    """
    tower = text_tower(model)
    corner = getattr(tower, "corner", None)
    if corner is not None and (corner.shift or not corner.mask):
        return False
    if pool_type(model) not in ("argmax", "eos") or tower.attn_mask is None:
        return False
    return getattr(tower, "cls_emb", None) is None


def end_positions(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Where the tower reads off each text: [B], the index of its end token."""
    if pool_type(model) == "eos":
        tower = text_tower(model)
        end_id = tower.eos_id if isinstance(tower, TextTransformer) else tower.text_eos_id
        return (tokens_BT == end_id).int().argmax(dim=-1)
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
