"""Attention weights: recorded, read at the pooled position, rolled out.

Every way is a distribution over positions. Multiplied with a matrix of queries by keys it gives
one row: what the pooled feature took from each position.

B batch, T positions of the text tower, P positions of the image tower, W width of a tower.

Fast attention kernels never hold the weights. While a layer's attention runs under `record`, its
kernel is computed step by step instead, and the output is made of the weights that are kept: there
is no second computation that could differ, and gradients flow through them.

B batch, H heads, Q queries, T positions, X width of a head, W width of the tower.

B pairs, L layers, H heads, T positions of a tower.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, Section 3.

B pairs, T positions of a tower.

T tokens, m corners, L layers, H heads, C = 1 + m tokens that are read off, G groups of words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from torch import nn
from torch.overrides import TorchFunctionMode

from longclip_lab.attribution.maps import (
    AttentionWeights,
    Pairs,
    PatchMap,
    Picture,
    TokenMap,
    as_pairs,
    patch_method,
    token_method,
    tokenize_with_spans,
    tokens_within,
)
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, anatomy, corners_of, encode_text_corners
from longclip_lab.models.anatomy import text_tower
from longclip_lab.models.encoding import evaluating
from longclip_lab.models.towers import end_positions
from longclip_lab.world import ATTRIBUTES, Caption

# --- Where a tower reads off its last layer: the end token, a class token, or a mean of ---

KNOWN_POOLS = ("token", "avg", "map")


@dataclass(frozen=True)
class PatchLayout:
    """How a transformer of pictures orders its positions: `prefix` of them, then the patches.

    `grid` is (rows, columns). `pool` says what is read off: "token" the first position, "avg" the
    mean of the patches, "map" an attention pool over them; others are not understood here.
    """

    grid: tuple[int, int]
    prefix: int
    pool: str

    @property
    def pooled(self) -> int | None:
        """The position that is read off, None where it is more than one."""
        return 0 if self.pool == "token" else None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the positions: "[class]", "[register 1]", then "row,column" from 0."""
        rows, columns = self.grid
        special = ["[class]"] + [f"[register {i}]" for i in range(1, self.prefix)]
        patches = [f"{row},{column}" for row in range(rows) for column in range(columns)]
        return tuple(special[: self.prefix] + patches)

    def pooling_P(self) -> torch.Tensor:
        """The share of each position in the pooled feature; LabError for an unknown pool."""
        if self.pool not in KNOWN_POOLS:
            raise LabError(
                f"this image tower pools its patches by '{self.pool}'; known here are "
                f"{', '.join(KNOWN_POOLS)}. Choose a method that does not ask, such as occlusion."
            )
        rows, columns = self.grid
        share_P = torch.zeros(self.prefix + rows * columns)
        if self.pooled is None:
            share_P[self.prefix :] = 1 / (rows * columns)
        else:
            share_P[self.pooled] = 1
        return share_P

    def from_pool(self, pool_BT: torch.Tensor) -> torch.Tensor:
        """What an attention pool takes, on all positions: [B, P]. It reads the patches only."""
        return F.pad(pool_BT, (self.prefix, 0))

    def to_grid(self, scores_BP: torch.Tensor) -> torch.Tensor:
        """The patches' part of scores of all positions: [B, rows, columns]."""
        return scores_BP[:, self.prefix :].unflatten(1, self.grid)


def patch_layout(clip: Clip) -> PatchLayout:
    """The positions of the image tower; LabError for towers that keep no patches to the end."""
    tokens = anatomy.patch_tokens(clip.model.visual)
    if tokens is None:
        kind = type(anatomy.frozen_part(clip.model.visual)).__name__
        raise LabError(
            f"the image tower of '{clip.name}' ({kind}) keeps no tokens of patches to its end. "
            "Choose a method that needs none, such as grad-cam or occlusion."
        )
    return PatchLayout(*tokens)


def text_pooled(clip: Clip, ids_BT: torch.Tensor, length: int) -> torch.Tensor | None:
    """The position that is read off each text, [B]; None where the tower averages its tokens.

    `length` is the number of positions that the tower ran on, which may be more than those of
    `ids_BT` (padding, a class token or corner tokens behind).
    """
    kind = anatomy.pooled_token(clip.model)
    if kind == "mean":
        return None
    if kind == "end":
        return end_positions(clip.model, ids_BT)
    position = 0 if kind == "first" else length - 1
    return torch.full((len(ids_BT),), position, device=ids_BT.device)


def text_pooling(clip: Clip, ids_BT: torch.Tensor, length: int) -> torch.Tensor:
    """The share of each position in the pooled feature of each text: [B, length]."""
    pooled_B = text_pooled(clip, ids_BT, length)
    if pooled_B is not None:
        return F.one_hot(pooled_B, length).float()
    read_BT = (ids_BT[:, :length] != text_tower(clip.model).config.pad_token_id).float()
    return read_BT / read_BT.sum(dim=1, keepdim=True)


@contextmanager
def averaged(clip: Clip, tower: str) -> Iterator[list[torch.Tensor]]:
    """The states [B, T, W] whose mean a tower takes, once it ran inside the block.

    The list stays empty for a tower that reads off one position or has an attention pool.
    """
    states: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states[:] = [getattr(output, "last_hidden_state", output)]

    part = text_tower(clip.model) if tower == "text" else clip.model.visual
    module = anatomy.averaged_states(part)
    handle = module.register_forward_hook(keep) if module is not None else None
    try:
        yield states
    finally:
        if handle is not None:
            handle.remove()


# --- The attention weights of a tower, exactly those of the forward pass ---

TOWERS = ("text", "image")
SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)


class Recording:
    """What `record` saw: for each of `layers` the weights [B, H, T, T] of its last run.

    `pool` [B, H, Q, T] are those of the attention pool behind the last layer, where there is one.
    """

    def __init__(self, layers: Sequence[int]):
        self.layers = list(layers)
        self.seen: dict[int | str, torch.Tensor] = {}

    @property
    def weights(self) -> list[torch.Tensor]:
        """The weights of each of `layers`; LabError if the tower has not run yet."""
        missing = [layer for layer in self.layers if layer not in self.seen]
        if missing:
            raise LabError(
                f"no attention was recorded in layers {missing}. Run clip.encode_text or "
                "clip.encode_image inside the block (encode_texts goes round the layers)."
            )
        return [self.seen[layer] for layer in self.layers]

    @property
    def pool(self) -> torch.Tensor | None:
        """The weights of the tower's attention pool; None where it pools in another way."""
        return self.seen.get("pool")


@contextmanager
def record(
    clip: Clip, tower: str, gradients: bool = False, layers: Sequence[int] | None = None
) -> Iterator[Recording]:
    """Make the attention of a tower ("text" or "image") visible inside the block.

    With `gradients` the weights are part of the graph, so that a similarity computed inside the
    block can be differentiated with respect to them, even if the model is frozen; otherwise they
    are detached. `layers` keeps only some (negative ones count from the end), which saves memory.
    Afterwards nothing is left on the model.

    Raises LabError for a tower without attention layers, and for attention of an unknown kind.
    """
    modules = attention_modules(clip, tower)
    chosen = range(len(modules)) if layers is None else [_index(i, len(modules)) for i in layers]
    recording = Recording(chosen)
    watched: dict[int | str, nn.Module] = {layer: modules[layer] for layer in chosen}
    pool = anatomy.attention_pool(clip.model.visual) if tower == "image" else None
    if pool is not None:
        watched["pool"] = pool
    mode = _StepByStep(recording.seen, gradients)
    with ExitStack() as undo:
        for name, module in watched.items():
            before = module.register_forward_pre_hook(partial(mode.enter_layer, name))
            undo.callback(before.remove)
            undo.callback(module.register_forward_hook(mode.leave_layer).remove)
        for module in clip.model.modules():
            # Activations that are computed again in the backward pass would miss this block.
            if gradients and getattr(module, "grad_checkpointing", False):
                module.grad_checkpointing = False
                undo.callback(setattr, module, "grad_checkpointing", True)
        undo.enter_context(mode)
        yield recording


def attention_modules(clip: Clip, tower: str) -> list[nn.Module]:
    """The modules of a tower's self-attention, first layer first.

    Raises LabError for an unknown tower and for one without transformer layers.
    """
    if tower not in TOWERS:
        raise LabError(f"expected the tower 'text' or 'image', got '{tower}'.")
    part = text_tower(clip.model) if tower == "text" else clip.model.visual
    modules = anatomy.self_attention(part)
    if modules is None:
        kind = type(anatomy.frozen_part(part)).__name__
        raise LabError(
            f"the {tower} tower of '{clip.name}' ({kind}) has no plain transformer layers, so no "
            "attention can be shown. Choose a method without it, such as grad-cam or occlusion."
        )
    return modules


class _StepByStep(TorchFunctionMode):
    """Computes attention step by step and keeps its weights, while a watched layer runs."""

    def __init__(self, seen: dict[int | str, torch.Tensor], gradients: bool):
        super().__init__()
        self.seen = seen
        self.gradients = gradients
        self.layer: int | str | None = None
        self.found = 0

    def enter_layer(self, layer: int | str, module: nn.Module, inputs: Any) -> None:
        self.layer, self.found = layer, 0

    def leave_layer(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.layer = None
        if self.found != 1:
            raise LabError(
                f"{type(module).__name__} is attention of a kind that cannot be recorded: it has "
                f"{self.found} sets of weights, expected 1."
            )

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.layer is not None:
            if func is F.scaled_dot_product_attention:
                return self.dot_product(*args, **kwargs)
            if func is F.multi_head_attention_forward:
                return self.multi_head(*args, **kwargs), None
            if func in SOFTMAX:
                return self.keep(func(*args, **kwargs))
        return func(*args, **kwargs)

    def keep(self, weights_BHQT: torch.Tensor) -> torch.Tensor:
        """Store the weights, and return them for the layer to go on with."""
        if self.gradients and not weights_BHQT.requires_grad:
            weights_BHQT.requires_grad_()  # below them nothing asks for a gradient: a new start
        self.found += 1
        self.seen[self.layer] = weights_BHQT if self.gradients else weights_BHQT.detach()
        return weights_BHQT

    def dot_product(
        self,
        query_BHQX: torch.Tensor,
        key_BHTX: torch.Tensor,
        value_BHTX: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> torch.Tensor:
        """`F.scaled_dot_product_attention`, from its documentation: [B, H, Q, X]."""
        scale = 1 / math.sqrt(query_BHQX.shape[-1]) if scale is None else scale
        scores_BHQT = (query_BHQX * scale) @ key_BHTX.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones_like(scores_BHQT[0, 0], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores_BHQT = scores_BHQT.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores_BHQT = scores_BHQT + attn_mask
        weights_BHQT = self.keep(scores_BHQT.softmax(dim=-1))
        return F.dropout(weights_BHQT, dropout_p, training=dropout_p > 0) @ value_BHTX

    def multi_head(
        self,
        query_TBW: torch.Tensor,
        key_TBW: torch.Tensor,
        value_TBW: torch.Tensor,
        width: int,
        heads: int,
        in_weight: torch.Tensor,
        in_bias: torch.Tensor | None,
        bias_k: None,
        bias_v: None,
        add_zero_attn: bool,
        dropout_p: float,
        out_weight: torch.Tensor,
        out_bias: torch.Tensor | None,
        training: bool = True,
        attn_mask: torch.Tensor | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """`nn.MultiheadAttention` of one input with itself, as open_clip's blocks use it.

        Its mask is additive, [T, T] or [B * H, T, T].
        """
        length, batch, _ = query_TBW.shape
        projected = F.linear(query_TBW, in_weight, in_bias).unflatten(-1, (3, heads, -1))
        query, key, value = projected.permute(2, 1, 3, 0, 4)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (batch, heads))
        read_BHTX = self.dot_product(query, key, value, attn_mask, dropout_p if training else 0.0)
        read_TBW = read_BHTX.permute(2, 0, 1, 3).reshape(length, batch, width)
        return F.linear(read_TBW, out_weight, out_bias)


def _index(layer: int, count: int) -> int:
    """A layer from the front, for one that may be counted from the end."""
    if not -count <= layer < count:
        raise LabError(f"expected a layer from {-count} to {count - 1}, got {layer}.")
    return layer % count


# --- Attention weights: all of one input's, and as scores read at the pooled position ---

FACTS: dict[str, Any] = {
    "about": "attention weights of one layer, read at the pooled position",
    "source": "Vaswani et al., NeurIPS 2017, equation 1",
}


def attention(
    clip: Clip,
    source: str | Picture,
    tower: str | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> AttentionWeights:
    """The attention weights of one text or one picture, exactly those of the forward pass.

    A `str` is a text, anything else a picture; say `tower="image"` for the path of a picture.
    `layer` and `head` keep one (negative: from the end), None keeps all; both axes stay, so the
    weights are [L, H, T, T] with L or H of 1. Padding and corner tokens stand behind a text's end
    token, in towers that read them.

    Raises LabError for towers without attention, unknown layers or heads, and bad pictures.

    >>> import longclip_lab as ll
    >>> weights = attention(ll.load("tiny"), "a red boat", layer=-1)
    >>> weights.weights.shape, weights.labels, weights.pooled
    ((1, 4, 5, 5), ('[start]', 'a', 'red', 'boat', '[end]'), 4)
    """
    tower = tower or ("text" if isinstance(source, str) else "image")
    layers = None if layer is None else [layer]
    with torch.no_grad(), evaluating(clip.model), record(clip, tower, layers=layers) as recording:
        if tower == "text":
            ids_BT, (spans,), _, _ = tokenize_with_spans(clip, [source])
            ids_BT = ids_BT.to(clip.device)
            clip.encode_text(ids_BT)
        else:
            pairs = as_pairs(clip, source, "")
            if len(pairs) != 1:
                raise LabError(f"expected one picture, got {len(pairs)}. Ask for one at a time.")
            clip.encode_image(pairs.pixels_B3HW)
    stacked = torch.cat([_choose(weights, head) for weights in recording.weights])
    if tower == "text":
        pooled_B = text_pooled(clip, ids_BT, stacked.shape[-1])
        pooled = None if pooled_B is None else int(pooled_B)
        words = [source[start:end] for start, end in spans]
        labels = ("[start]", *words, "[end]", *_behind(clip, stacked.shape[-1] - len(words) - 2))
        shown = source
    else:
        layout = patch_layout(clip)
        labels, pooled, shown = layout.labels, layout.pooled, pairs.shown_BSS3[0]
    return AttentionWeights(
        model=clip.name,
        tower=tower,
        weights=stacked.cpu().numpy(),
        labels=labels,
        pooled=pooled,
        source=shown,
    )


@patch_method("attention", asks_text=False, **FACTS)
def patch_attention(pairs: Pairs, layer: int = -1, head: int | None = None) -> list[PatchMap]:
    """What the pooled position attends to in `layer`; `head` None is the mean over heads."""
    recording = run(pairs, "image", [layer])
    return patch_scores(pairs, "attention", recording, _choose(recording.weights[0], head).mean(1))


@token_method("attention", **FACTS)
def token_attention(pairs: Pairs, layer: int = -1, head: int | None = None) -> list[TokenMap]:
    """What the pooled position attends to in `layer`; `head` None is the mean over heads."""
    recording = run(pairs, "text", [layer])
    return token_scores(pairs, "attention", _choose(recording.weights[0], head).mean(1))


def run(pairs: Pairs, tower: str, layers: list[int] | None = None) -> Recording:
    """The recording of one tower on the pairs."""
    clip = pairs.clip
    with torch.no_grad(), evaluating(clip.model), record(clip, tower, layers=layers) as recording:
        if tower == "text":
            clip.encode_text(pairs.ids_BT)
        else:
            clip.encode_image(pairs.pixels_B3HW)
    return recording


def patch_scores(
    pairs: Pairs, method: str, recording: Recording, matrix_BTT: torch.Tensor
) -> list[PatchMap]:
    """The pooled row of a matrix of positions, as maps; `elsewhere` is what is on no patch."""
    layout = patch_layout(pairs.clip)
    pooling_BT = layout.pooling_P().to(matrix_BTT).expand(len(matrix_BTT), -1)
    if recording.pool is not None:
        pooling_BT = layout.from_pool(recording.pool.mean(dim=(1, 2)))
    scores_Bhw = layout.to_grid(torch.einsum("bq,bqk->bk", pooling_BT, matrix_BTT))
    return [
        PatchMap(
            method=method,
            model=pairs.clip.name,
            image=shown,
            scores=scores.cpu().numpy(),
            details={"elsewhere": float(1 - scores.sum())},
            shift=pairs.shift,
        )
        for shown, scores in zip(pairs.shown_BSS3, scores_Bhw, strict=True)
    ]


def token_scores(pairs: Pairs, method: str, matrix_BTT: torch.Tensor) -> list[TokenMap]:
    """The pooled row of a matrix of positions, as maps; `elsewhere` is what is on no token."""
    pooling_BT = text_pooling(pairs.clip, pairs.ids_BT, matrix_BTT.shape[-1]).to(matrix_BTT)
    scores_BT = torch.einsum("bq,bqk->bk", pooling_BT, matrix_BTT)
    maps = []
    for b, positions in enumerate(pairs.positions):
        scores_T = scores_BT[b, positions]
        maps.append(
            TokenMap(
                method=method,
                model=pairs.clip.name,
                text=pairs.texts[b],
                spans=pairs.spans[b],
                scores=scores_T.cpu().numpy(),
                unread=pairs.unread[b],
                details={"elsewhere": float(1 - scores_T.sum())},
            )
        )
    return maps


def _behind(clip: Clip, count: int) -> list[str]:
    """Names of `count` positions behind the end token: corner or register tokens, or padding."""
    corner = getattr(text_tower(clip.model), "corner", None)
    if corner is not None and corner.num_corner == count:
        return [f"[{corner.kind} {i}]" for i in range(1, count + 1)]
    return ["[padding]"] * count


def _choose(weights_BHTT: torch.Tensor, head: int | None) -> torch.Tensor:
    """One head, or all of them: [B, 1 or H, T, T]."""
    heads = weights_BHTT.shape[1]
    if head is None:
        return weights_BHTT
    if not -heads <= head < heads:
        raise LabError(f"expected a head from {-heads} to {heads - 1}, got {head}.")
    return weights_BHTT[:, [head]]


# --- Attention rollout: attention multiplied through the layers, with the residual stream ---

ROLLOUT_FACTS: dict[str, Any] = {
    "about": "attention weights multiplied through the layers, half of each the residual",
    "source": "Abnar and Zuidema, ACL 2020, Section 3",
}


@patch_method("rollout", asks_text=False, **ROLLOUT_FACTS)
def patch_rollout(pairs: Pairs) -> list[PatchMap]:
    """The patches that the pooled position gets to through all layers."""
    recording = run(pairs, "image")
    return patch_scores(pairs, "rollout", recording, rollout(recording.weights))


@token_method("rollout", **ROLLOUT_FACTS)
def token_rollout(pairs: Pairs) -> list[TokenMap]:
    """The tokens that the pooled position gets to through all layers.

    In a causal tower every path can end at the start token, and most of them do: that is a
    property of causal rollout, not of the text.
    """
    return token_scores(pairs, "rollout", rollout(run(pairs, "text").weights))


def rollout(weights_BHTT: Sequence[torch.Tensor]) -> torch.Tensor:
    """The product over layers of (mean over heads + 1) / 2, last layer leftmost: [B, T, T].

    Rows sum to 1, as those of the weights do.

    >>> uniform = torch.full((1, 2, 4, 4), 1 / 4)
    >>> rollout([uniform, uniform])[0, 0]
    tensor([0.4375, 0.1875, 0.1875, 0.1875])
    """
    first, *_ = weights_BHTT
    product_BTT = torch.eye(first.shape[-1]).to(first).expand(len(first), -1, -1)
    for layer_BHTT in weights_BHTT:
        product_BTT = (layer_BHTT.mean(dim=1) @ product_BTT + product_BTT) / 2
    return product_BTT


# --- What corner tokens attend to, beside what [CLS] does ---

SCENE, OTHER = "scene", "other words"


@dataclass(frozen=True)
class CornerLooks:
    """Where [CLS] and the corners look in one layer, as means over texts and heads.

    `shares` [C, G]: of the weight that a token gives to words, the part on each group; rows sum
    to 1. `even` [G] is the part of the words that are in the group. `overlap` [C, C]: how much of
    two tokens' weight lies on the same words, 1 where they look alike.
    """

    labels: tuple[str, ...]
    groups: tuple[str, ...]
    shares: np.ndarray
    even: np.ndarray
    overlap: np.ndarray
    num_texts: int


def corner_attention(clip: Clip, text: str) -> AttentionWeights:
    """The attention weights of a text with its corner (or register) tokens: [L, H, T, T].

    `attention` shows the tower as `encode_text` runs it, which leaves masked corners out. Here
    they are read, as in training. Positions are in the paper's order: [CLS], corners, text; in
    CLIP's towers the corners stand before the end token.

    Raises LabError for a model without corner tokens.
    """
    corner = corners_of(clip)
    if corner is None:
        raise LabError(
            f"'{clip.name}' has no corner tokens: add_corner_tokens gives it some, attention reads "
            "it as it is."
        )
    ids_BT, (spans,), _, _ = tokenize_with_spans(clip, [text])
    with torch.no_grad(), evaluating(clip.model), record(clip, "text") as recording:
        encode_text_corners(clip, ids_BT)
    weights_LHTT = torch.cat(recording.weights).cpu().numpy()
    own = [f"[Cor {i}]" for i in range(1, corner.num_corner + 1)]
    if corner.kind == "register":
        own = [f"[Reg {i}]" for i in range(1, corner.num_corner + 1)]
    words = [text[start:end] for start, end in spans]
    is_bert = isinstance(text_tower(clip.model), HFTextEncoder)
    labels = ["[CLS]" if is_bert else "[start]", *words, "[SEP]" if is_bert else "[end]", *own]
    # In the tower's tensors the corners come last.
    length, ahead = len(words) + 2, 1 if is_bert else len(words) + 1
    order = [*range(ahead), *range(length, len(labels)), *range(ahead, length)]
    return AttentionWeights(
        model=clip.name,
        tower="text",
        weights=weights_LHTT[:, :, order][..., order],
        labels=tuple(labels[i] for i in order),
        pooled=0 if is_bert else len(labels) - 1,
        source=text,
    )


def corner_looks(clip: Clip, captions: Sequence[Caption], layer: int = -1) -> CornerLooks:
    """Where [CLS] and every corner look, by what the words tell of the scene.

    `captions` are the world's, whose words' attributes are known. Weight on the tokens themselves
    and on [CLS], [SEP] or the end token is left out: what remains is shared out among the words.

    Raises LabError as `corner_attention` does, and for no captions.
    """
    if not captions:
        raise LabError("There is no caption to look at.")
    groups = (*ATTRIBUTES, SCENE, OTHER)
    shares, evens, overlaps = [], [], []
    for caption in captions:
        found = corner_attention(clip, caption.text)
        is_word_T = np.array([not label.startswith("[") for label in found.labels])
        readers = [i for i, label in enumerate(found.labels) if label[:4] in ("[Cor", "[Reg")]
        readers = [found.pooled, *readers]
        weights_HCT = found.weights[layer][:, readers][:, :, is_word_T]
        weights_HCT = weights_HCT / weights_HCT.sum(axis=-1, keepdims=True)
        member_GT = _members(clip, caption, groups, int(is_word_T.sum()))
        shares.append(np.einsum("hct,gt->cg", weights_HCT, member_GT) / len(weights_HCT))
        evens.append(member_GT.mean(axis=1))
        pairs_HCCT = np.minimum(weights_HCT[:, :, None], weights_HCT[:, None])
        overlaps.append(pairs_HCCT.sum(axis=-1).mean(axis=0))
    return CornerLooks(
        labels=tuple(found.labels[i] for i in readers),
        groups=groups,
        shares=np.mean(shares, axis=0),
        even=np.mean(evens, axis=0),
        overlap=np.mean(overlaps, axis=0),
        num_texts=len(captions),
    )


def _members(clip: Clip, caption: Caption, groups: Sequence[str], words: int) -> np.ndarray:
    """Which of the words read belong to which group: [G, words], each word to one."""
    spans = clip.tokenizer.tokenize(caption.text).spans[:words]
    member_GT = np.zeros((len(groups), words))
    for fact in caption.facts:
        inside_T = tokens_within(spans, *fact.span)
        group = fact.attribute if fact.attribute in groups else SCENE
        member_GT[groups.index(group), inside_T] = 1
    member_GT[-1] = member_GT[:-1].sum(axis=0) == 0
    return member_GT
