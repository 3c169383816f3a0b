"""The attention weights of a tower, exactly those of the forward pass.

Fast attention kernels never hold the weights. While a layer's attention runs under `record`, its
kernel is computed step by step instead, and the output is made of the weights that are kept: there
is no second computation that could differ, and gradients flow through them.

B batch, H heads, Q queries, T positions, X width of a head, W width of the tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from torch import nn
from torch.overrides import TorchFunctionMode

from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.models.text_tower import text_tower

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
    pool = attention_pool(clip) if tower == "image" else None
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
    if isinstance(part, HFTextEncoder):
        modules = [
            module
            for module in part.transformer.modules()
            if type(module).__name__.endswith("SelfAttention")
        ]
    elif isinstance(part, TimmModel):
        modules = [getattr(block, "attn", None) for block in getattr(part.trunk, "blocks", ())]
    else:
        blocks = getattr(getattr(part, "transformer", None), "resblocks", ())
        modules = [block.attn for block in blocks]
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        kind = type(part.trunk if isinstance(part, TimmModel) else part).__name__
        raise LabError(
            f"the {tower} tower of '{clip.name}' ({kind}) has no plain transformer layers, so no "
            "attention can be shown. Choose a method without it, such as grad-cam or occlusion."
        )
    return modules


def attention_pool(clip: Clip) -> nn.Module | None:
    """The attention that reads off timm's towers with "map" pooling (SigLIP's), else None."""
    visual = clip.model.visual
    return getattr(visual.trunk, "attn_pool", None) if isinstance(visual, TimmModel) else None


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
