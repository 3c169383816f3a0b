"""Corner tokens: LoTLIP, section 4.3; and register tokens, its rivals of Table 7.

A long caption overshadows its own details in the one [CLS] feature. LoTLIP puts m learned tokens
C = {[Cor 1], .., [Cor m]} behind [CLS] (Figure 3), which gather other features of the same text:

    [CLS] [Cor 1] .. [Cor m] sub-caption [SEP] sub-caption [SEP]

So that they do not all gather the same, an attention mask A (the equation before Eq. 4) hides them
from the text, from each other and from [CLS]:

    A(q, k) = 0  if (k in C, or q, k both in C and [CLS]) and q != k;  else 1.

[CLS]'s feature is the paper's t_g, those of the corners are t_c1 .. t_cm; Eq. 4 to 6 compare each
of them with the image (`longclip_lab.objectives.lotlip`). At test time only t_g is used, and since
nothing reads a corner behind the mask, they are left out then at no loss.

From top to bottom: the mask, the two kinds of towers, giving a tower its corners, reading them off.

B texts, T tokens (start and end included, without corners), E tokens up to the last end token of
the batch, m corners, q query, k key, W width, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from longclip_lab.errors import MANY, LabError, suggest
from longclip_lab.models.anatomy import pool_type, text_tower, token_embedding
from longclip_lab.models.clip import Clip
from longclip_lab.models.towers import (
    checked_tokens,
    encode_tokens,
    end_positions,
    project,
    without_padding,
)

# --- Who attends to whom in a text tower with corner tokens: pure functions, no weights ---


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
    corner_T = pooled_T & (position_T > 0)  # C, without [CLS]
    # A(q, k) = 0 if (k in C, or q and k both among C and [CLS]) ..
    blocked_TT = corner_T.unsqueeze(0) | (pooled_T.unsqueeze(1) & pooled_T.unsqueeze(0))
    # .. and q != k: on the diagonal everybody reads itself, so that no row is empty.
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
    allowed[:, :length, :length] = position_E.unsqueeze(1) >= position_E  # CLIP's causal mask
    # A corner stands before the end token, so it reads everything up to there and not that.
    allowed[:, length:, :length] = (position_E < ends_B.unsqueeze(1)).unsqueeze(1)
    among = torch.ones(num_corner, num_corner, dtype=torch.bool, device=ends_B.device)
    allowed[:, length:, length:] = among.tril() if not mask else among.tril().triu()
    # Only the end token stands behind the corners and may, without the mask, read them.
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


# --- Text towers with learned tokens of their own: open_clip's two kinds ---

Kind = Literal["corner", "register"]
Positions = Literal["shifted", "kept"]

_POSITION_OFFSET = ("roberta", "xlm-roberta", "camembert")
"""Kinds whose first token stands at position `pad_token_id + 1`."""
BERT_LIKE = ("bert", "electra", "distilbert", *_POSITION_OFFSET)
"""Kinds of transformers that read a text both ways with learned absolute positions."""


@dataclass(frozen=True)
class CornerTokens:
    """What kind of tokens a text tower was given; the fields are `add_corner_tokens`'s arguments.

    Raises LabError for values that make no sense.
    """

    num_corner: int = 2
    mask: bool = True
    kind: Kind = "corner"
    positions: Positions = "shifted"

    def __post_init__(self) -> None:
        check_num_corner(self.num_corner)
        for name, known in (("kind", get_args(Kind)), ("positions", get_args(Positions))):
            value = getattr(self, name)
            if value not in known:
                raise LabError(f"{name}={value!r} is unknown. {suggest(str(value), known)}")
        if self.kind == "register" and self.mask:
            raise LabError(
                "Register tokens carry no loss: behind the mask nothing would ever read them and "
                "they could not be trained. Use mask=False with kind='register'."
            )

    @property
    def shift(self) -> int:
        """How many positions of the table the tokens take away from the text."""
        return self.num_corner if self.positions == "shifted" else 0


class CornerTextEncoder(HFTextEncoder):
    """A BERT-style tower that reads [CLS] [Cor 1] .. [Cor m] text.

    The corners stand after [CLS] by their positions; in the tensors they come last, so that the
    state at index i belongs to token i whether corners are there or not (attention is blind to
    the order of a tensor). Token ids hold no corners; those of the released layout, with ids
    V to V + m - 1 after [CLS], are recognised and taken out.
    """

    corner: CornerTokens
    corner_embedding: nn.Parameter

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """[CLS]'s features [B, D]. With the mask nothing reads the corners: they are left out."""
        output = self._run(ids_BT, with_corners=not self.corner.mask)
        return self.proj(self.pooler(output, None))

    def plain_ids(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Token ids without the corners of the released layout, [CLS] V .. V + m - 1 text."""
        count = self.corner.num_corner
        released_m = torch.arange(self.vocab_size, self.vocab_size + count, device=ids_BT.device)
        if ids_BT.shape[1] <= count or not (ids_BT[:, 1 : 1 + count] == released_m).all():
            return ids_BT
        return torch.cat([ids_BT[:, :1], ids_BT[:, 1 + count :]], dim=1)

    def encode_corners(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The features of [CLS] and of every corner: [B, 1 + m, D]."""
        output = self._run(ids_BT, with_corners=True)
        states_BmW = output.last_hidden_state[:, -self.corner.num_corner :]
        dense = getattr(self.transformer, "pooler", None)
        # [CLS] and corners share the pooler (dense and tanh) and the projection, as in the release.
        if isinstance(self.pooler, ClsPooler) and self.pooler.use_pooler_output and dense:
            alone = states_BmW.flatten(0, 1).unsqueeze(1)  # the pooler takes the first of a row
            states_BmW = dense(alone).unflatten(0, states_BmW.shape[:2])
        pooled = torch.cat([self.pooler(output, None).unsqueeze(1), states_BmW], dim=1)
        return self.proj(pooled)

    def _run(self, ids_BT: torch.Tensor, with_corners: bool) -> BaseModelOutput:
        """What transformers gives: states [B, T, W], or [B, T + m, W] with the corners behind."""
        ids_BT = self.plain_ids(ids_BT)
        tokens_BT = ids_BT != self.config.pad_token_id
        length, corners = ids_BT.shape[1], self.corner.num_corner
        # The text behind [CLS] makes room for the corners in the table of positions, whether they
        # are run or not: one text has one feature.
        position_T = torch.arange(length, device=ids_BT.device)
        position_T = position_T + (position_T > 0) * self.corner.shift + position_offset(self)
        embedded = self.transformer.get_input_embeddings()(ids_BT)
        if with_corners:
            corners_BmW = self.corner_embedding.to(embedded).expand(len(ids_BT), -1, -1)
            embedded = torch.cat([embedded, corners_BmW], dim=1)
            place_m = torch.arange(1, corners + 1, device=ids_BT.device)
            place_m = place_m * bool(self.corner.shift)  # kept: all at the place of [CLS]
            position_T = torch.cat([position_T, place_m + position_offset(self)])
            tokens_BT = torch.cat([tokens_BT, tokens_BT.new_ones(len(ids_BT), corners)], dim=1)
        return self.transformer(
            inputs_embeds=embedded,
            attention_mask=self._attention(tokens_BT, embedded.dtype, with_corners),
            position_ids=position_T.unsqueeze(0),
        )

    def _attention(
        self, tokens_BT: torch.Tensor, dtype: torch.dtype, with_corners: bool
    ) -> torch.Tensor:
        """The padding mask, or the paper's for the order of our tensors, in four dimensions."""
        # transformers turns [B, T] into a mask itself and takes [B, 1, T, T] as it is.
        if not (with_corners and self.corner.mask):
            return tokens_BT.long()
        corners = self.corner.num_corner
        text = tokens_BT.shape[1] - corners
        place = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        # place[i] is where index i of our tensors stands in the paper's order.
        place = torch.cat([place[:1], place[1 + corners :], place[1 : 1 + corners]])
        in_order_BT = torch.cat([tokens_BT[:, :1], tokens_BT[:, text:], tokens_BT[:, 1:text]], 1)
        allowed_BTT = corner_attention_mask(in_order_BT, corners)[:, place][:, :, place]
        return additive(allowed_BTT, dtype).unsqueeze(1)


class CornerTextTransformer(TextTransformer):
    """A CLIP-style tower that reads [start] text [Cor 1] .. [Cor m] [end].

    The corners stand before the end token by their positions and by what they read; in the
    tensors they come last (`causal_corner_mask`). Token ids hold no corners, and no id moves: the
    released code puts theirs before the start token's, which renumbers start and end.
    """

    corner: CornerTokens
    corner_embedding: nn.Parameter

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The end token's features [B, D]; with the mask the corners are left out."""
        return self._features(ids_BT, with_corners=not self.corner.mask)[:, 0]

    def encode_corners(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The features of the end token and of every corner: [B, 1 + m, D]."""
        return self._features(ids_BT, with_corners=True)

    def _features(self, ids_BT: torch.Tensor, with_corners: bool) -> torch.Tensor:
        ends_B = end_positions(self, ids_BT)
        length = int(ends_B.max()) + 1
        corners = self.corner.num_corner if with_corners else 0
        # The end token alone moves on: it stands behind the corners.
        position_BT = torch.arange(length, device=ids_BT.device).expand(len(ids_BT), -1)
        position_BT = position_BT + (position_BT == ends_B.unsqueeze(1)) * self.corner.shift
        dtype = self.transformer.get_cast_dtype()
        states = self.token_embedding(ids_BT[:, :length]).to(dtype)
        if corners:
            corners_BmW = self.corner_embedding.to(states).expand(len(ids_BT), -1, -1)
            states = torch.cat([states, corners_BmW], dim=1)
            place_m = torch.arange(corners, device=ids_BT.device) * bool(self.corner.shift)
            position_BT = torch.cat([position_BT, ends_B.unsqueeze(1) + place_m], dim=1)
        states = states + self.positional_embedding[position_BT].to(dtype)
        mask = self.attn_mask[:length, :length]
        if corners:
            allowed = causal_corner_mask(ends_B, corners, self.corner.mask)
            # nn.MultiheadAttention takes one mask a text and head, [B * heads, T, T].
            mask = additive(allowed, states.dtype).repeat_interleave(self.heads, dim=0)
        states = self.transformer(states, attn_mask=mask)
        ends_BW = states[torch.arange(len(ids_BT), device=ids_BT.device), ends_B]
        return project(self, torch.cat([ends_BW.unsqueeze(1), states[:, length:]], dim=1))


CornerTower = CornerTextEncoder | CornerTextTransformer


def give_corners(tower: nn.Module, corner: CornerTokens) -> CornerTower:
    """Turn `tower` (in place) into one with corner tokens; all else stays.

    Raises LabError for towers that have no one token to pool, and for too many tokens.
    """
    check_tower(tower)
    if corner.shift > tower.context_length - 3:
        raise LabError(
            f"{corner.num_corner} tokens do not fit into a context of {tower.context_length}: "
            "start and end and one token of text must fit beside them."
        )
    # The same parts under another forward, as torch.nn.utils.parametrize does it.
    tower.__class__ = (
        CornerTextEncoder if isinstance(tower, HFTextEncoder) else CornerTextTransformer
    )
    tower.corner = corner
    tower.context_length -= corner.shift
    width = token_embedding(tower).embedding_dim
    tower.corner_embedding = nn.Parameter(torch.empty(corner.num_corner, width))
    with torch.no_grad():
        tower.corner_embedding.copy_(draw_corners(tower, seed=0))
    return tower


def draw_corners(tower: CornerTower, seed: int) -> torch.Tensor:
    """Fresh values [m, W] for the corner tokens of `tower`, as its word embeddings are drawn.

    Each token is drawn by itself, so that 2 tokens and 4 share the first two.
    """
    # Drawn differently each: equal corners would get equal gradients and stay equal (Figure 3).
    config = getattr(tower, "config", None)
    deviation = getattr(config, "initializer_range", 0.02)
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randn(token_embedding(tower).embedding_dim, generator=generator)
        for _ in range(tower.corner.num_corner)
    ]
    return deviation * torch.stack(rows)


def check_tower(tower: nn.Module) -> None:
    """Raise LabError unless corner tokens can stand beside the tower's pooled token."""
    if hasattr(tower, "corner"):
        raise LabError("This text tower has corner or register tokens already.")
    if isinstance(tower, HFTextEncoder):
        kind = tower.config.model_type
        if kind not in BERT_LIKE:
            raise LabError(
                f"Corner tokens need a BERT-like text tower ({', '.join(BERT_LIKE)}), got '{kind}'."
            )
        if not isinstance(tower.pooler, ClsPooler | ClsLastHiddenStatePooler):
            raise LabError(
                "Corner tokens stand beside a [CLS] token, but this tower averages its tokens "
                f"({type(tower.pooler).__name__}). Use hf_pooler_type='cls_pooler'."
            )
    elif (
        not isinstance(tower, TextTransformer)
        or tower.pool_type not in ("argmax", "eos")
        or tower.attn_mask is None
        or tower.cls_emb is not None
    ):
        raise LabError(
            "Corner tokens stand before the end token of a causal CLIP text tower or after the "
            f"[CLS] token of a BERT-like one; this {type(tower).__name__} is neither."
        )


def position_offset(tower: HFTextEncoder) -> int:
    """The position of the first token in a tower of transformers."""
    config = tower.config
    return config.pad_token_id + 1 if config.model_type in _POSITION_OFFSET else 0


# --- Corner tokens (LoTLIP) and register tokens: reading them off ---


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
