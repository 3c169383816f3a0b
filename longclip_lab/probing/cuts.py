"""Features of every prefix of a text, in one pass.

N texts, T tokens, C cuts, D embedding, W width.

In a causal tower the states of a prefix do not depend on what follows, so all cuts of a text share
them: one end token for each cut is put behind the text, with the position it has at its cut, and a
mask lets it see only its prefix and itself. The result is that of running every cut alone (test:
`tests/probing/test_cuts.py`), for the price of T + C tokens instead of the sum of all cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from longclip_lab.models import Clip, Tokens
from longclip_lab.models.encoding import check_finite
from longclip_lab.models.text_tower import can_trim, pool_type, text_tower
from longclip_lab.text import cut_tokens


def encode_cuts(
    clip: Clip, tokens: Tokens, cuts: Sequence[int], batch_size: int = 64
) -> torch.Tensor:
    """Features [C, N, D], not normalised: each text's first `cut` content tokens, then its end.

    A text that is no longer than a cut is read whole. Towers that are not causal run cut by cut.
    Raises NotFiniteError for features that are not finite.
    """
    encode = _encode_together if cuts_share_states(clip) else _encode_one_by_one
    order = torch.argsort(tokens.lengths_B, stable=True)
    features_CND = torch.empty(len(cuts), len(order), clip.embed_dim)
    with torch.inference_mode():
        for rows in order.split(batch_size):
            features_CND[:, rows] = (
                encode(clip, tokens.ids_BT[rows], tokens.lengths_B[rows], cuts).float().cpu()
            )
    check_finite(features_CND.transpose(0, 1), "texts", clip.name)
    return features_CND


def cuts_share_states(clip: Clip) -> bool:
    """Whether all cuts of a text are one pass: the tower is causal and reads the end token."""
    return can_trim(clip.model) and pool_type(clip.model) in ("argmax", "eos")


def _encode_together(
    clip: Clip, ids_NT: torch.Tensor, lengths_N: torch.Tensor, cuts: Sequence[int]
) -> torch.Tensor:
    tower, device = text_tower(clip.model), clip.device
    length = int(lengths_N.max())
    dtype = tower.transformer.get_cast_dtype()
    cut_C = torch.tensor(cuts, device=device).clamp(max=length - 1)
    ids_NT = ids_NT[:, :length].to(device)
    ends_NC = torch.full((len(ids_NT), len(cuts)), clip.tokenizer.end_id, device=device)
    positions = torch.cat([torch.arange(length, device=device), cut_C + 1]).clamp(max=length - 1)
    states = tower.token_embedding(torch.cat([ids_NT, ends_NC], 1)).to(dtype)
    states = states + tower.positional_embedding[positions].to(dtype)
    mask = torch.full((length + len(cuts),) * 2, float("-inf"), device=device)
    mask[:length, :length] = tower.attn_mask[:length, :length]
    seen_CT = torch.arange(length, device=device) <= cut_C[:, None]
    mask[length:, :length].masked_fill_(seen_CT, 0.0)
    mask[length:, length:].fill_diagonal_(0.0)
    states = tower.transformer(states, attn_mask=mask.to(dtype))
    whole_N = lengths_N.to(device) - 1  # the text's own end token
    column_CN = torch.where(
        cut_C[:, None] < whole_N - 1,
        torch.arange(length, length + len(cuts), device=device)[:, None],
        whole_N,
    )
    rows_N = torch.arange(len(ids_NT), device=device)
    pooled_CNW = tower.ln_final(states[rows_N, column_CN])
    projection = tower.text_projection
    if projection is None:
        return pooled_CNW
    linear = isinstance(projection, torch.nn.Linear)
    return projection(pooled_CNW) if linear else pooled_CNW @ projection


def _encode_one_by_one(
    clip: Clip, ids_NT: torch.Tensor, lengths_N: torch.Tensor, cuts: Sequence[int]
) -> torch.Tensor:
    tokenizer, rows = clip.tokenizer, []
    for cut in cuts:
        ids = cut_tokens(ids_NT.numpy(), lengths_N.numpy(), cut, tokenizer.end_id, tokenizer.pad_id)
        rows.append(clip.encode_text(torch.from_numpy(np.ascontiguousarray(ids))))
    return torch.stack(rows)
