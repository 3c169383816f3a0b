"""Who attends to whom in a text tower with corner tokens: pure functions, no weights.

B texts, T tokens, E tokens up to the last end token of the batch, q query, k key.
"""

from __future__ import annotations

import torch

from longclip_lab.errors import MANY, LabError


def corner_attention_mask(attention_mask_BT: torch.Tensor, num_corner: int) -> torch.Tensor:
    """LoTLIP's attention mask A(q, k) for BERT-style towers: bool [B, T, T], True where q reads k.

    `attention_mask_BT` is 1 (or True) at tokens and 0 at padding. T counts everything in the
    paper's order: [CLS], then the `num_corner` corner tokens, then the text with its [SEP]s. Let
    C be the corners. Then A(q, k) = 0 if (k in C, or q and k both in C and [CLS]) and q != k, else
    1: the text reads the text and [CLS], each corner and [CLS] read themselves and the text.
    Nobody reads padding; the rows of padding are those of text tokens and are read by nobody.

    Source: LoTLIP (Wu et al., NeurIPS 2024), section 4.3, "Corner Tokens".

    Raises LabError unless the mask is [B, T] and 0 <= num_corner < T.

    >>> corner_attention_mask(torch.tensor([[1, 1, 1, 1, 0]]), num_corner=2)[0].int()
    tensor([[1, 0, 0, 1, 0],
            [0, 1, 0, 1, 0],
            [0, 0, 1, 1, 0],
            [1, 0, 0, 1, 0],
            [1, 0, 0, 1, 0]], dtype=torch.int32)
    """
    check_num_corner(num_corner)
    if attention_mask_BT.ndim != 2:
        raise LabError(
            f"Expected an attention mask [B, T], got a tensor of {tuple(attention_mask_BT.shape)}."
        )
    length = attention_mask_BT.shape[1]
    if num_corner >= length:
        raise LabError(
            f"A mask over {length} tokens has no room for [CLS] and {num_corner} corner tokens: "
            f"at least {num_corner + 1} are needed. T counts [CLS], the corners and the text."
        )
    position_T = torch.arange(length, device=attention_mask_BT.device)
    pooled_T = position_T <= num_corner
    corner_T = pooled_T & (position_T > 0)
    blocked_TT = corner_T.unsqueeze(0) | (pooled_T.unsqueeze(1) & pooled_T.unsqueeze(0))
    blocked_TT = blocked_TT & (position_T.unsqueeze(1) != position_T.unsqueeze(0))
    return ~blocked_TT & attention_mask_BT.bool().unsqueeze(1)


def causal_corner_mask(ends_B: torch.Tensor, num_corner: int, mask: bool = True) -> torch.Tensor:
    """The same for CLIP-style towers: bool [B, E + m, E + m], True where q reads k.

    `ends_B` are the places of the end tokens, E is the last of them plus one. Corner tokens stand
    before the end token in the order of reading, but behind everything in the tensor: rows and
    columns 0 to E - 1 are the tokens as they are given, the last m are the corners. Reading stays
    causal: a corner reads its own text, and with `mask` neither the other corners nor the end
    token; the end token reads no corner. Without `mask` each corner reads those before it and the
    end token reads them all.

    Raises LabError for a negative number of corners.

    >>> causal_corner_mask(torch.tensor([2]), num_corner=1)[0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 1, 0, 1]], dtype=torch.int32)
    """
    check_num_corner(num_corner)
    length = int(ends_B.max()) + 1
    position_E = torch.arange(length, device=ends_B.device)
    size = length + num_corner
    allowed = torch.zeros(len(ends_B), size, size, dtype=torch.bool, device=ends_B.device)
    allowed[:, :length, :length] = position_E.unsqueeze(1) >= position_E
    allowed[:, length:, :length] = (position_E < ends_B.unsqueeze(1)).unsqueeze(1)
    among = torch.ones(num_corner, num_corner, dtype=torch.bool, device=ends_B.device)
    allowed[:, length:, length:] = among.tril() if not mask else among.tril().triu()
    if not mask:
        allowed[:, :length, length:] = (position_E == ends_B.unsqueeze(1)).unsqueeze(2)
    return allowed


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where attention is allowed, minus infinity elsewhere: what every attention kernel takes.

    No row may be empty; rows of the masks above never are, as every text has its first token.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, float("-inf")
    )


def check_num_corner(num_corner: int) -> None:
    """Raise LabError unless `num_corner` is a whole number from 0."""
    MANY.check("The number of corner tokens", num_corner)
