"""The gradient of a large batch in the memory of a small one.

A contrastive loss compares all pairs of a batch, but it needs only their features. So the towers
run twice, one micro-batch at a time (GradCache, Gao et al. 2021, section 3): first without a graph,
for the features; then, when the loss has told each feature its gradient, with a graph and
backwards. What comes out is the gradient of the whole batch, that of the logit scale included.
Accumulating the losses of micro-batches is another thing: it has fewer negatives.

B pairs of one process, T tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from longclip_lab.objectives import ImageFeatures, LossInputs, LossParts, TextFeatures
from longclip_lab.training.data import Batch
from longclip_lab.training.distributed import no_exchange

Features = TypeVar("Features", ImageFeatures, TextFeatures)
_SIDES, _SCALARS = ("image", "short", "long"), ("logit_scale", "logit_bias")
_DIFFERENTIABLE = ("features_BD", "features_BCD", "tokens_BPD", "tokens_BTD")
_OF_TOKENS = ("tokens_BTD", "mask_BT")


def backward_in_parts(
    accelerator: Accelerator,
    towers: nn.Module,
    batch: Batch,
    size: int,
    loss: Callable[[LossInputs], LossParts],
) -> tuple[LossParts, LossInputs]:
    """Add the gradient of `loss` on the whole `batch` to the weights, `size` pairs at a time.

    `towers`, as `accelerator` prepared them, turn a batch into what `loss` sees; `loss` may gather
    features from all processes. Returns the loss and the batch as it saw it.
    Raises whatever `loss` raises, before the second pass.
    """
    parts = [batch.rows(start, start + size) for start in range(0, batch.pairs, size)]
    states, seen = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(accelerator.device))
            seen.append(towers(part))
    # The loss on the features of all micro-batches, which are leaves here: its gradient ends at
    # the features and costs no memory of a tower.
    whole = _as_leaves(_joined(seen))
    losses = loss(whole)
    losses.total.backward()
    start = 0
    for index, (part, state) in enumerate(zip(parts, states, strict=True)):
        # Dropout must drop what it dropped in the first pass, or the gradient is another's.
        _set_random_state(state, accelerator.device)
        last = index == len(parts) - 1
        # Processes exchange gradients once, when the last micro-batch has added its own.
        with nullcontext() if last else no_exchange(accelerator, towers):
            again = towers(part)
            # A sum whose gradient is what the loss has sent to the features (chain rule).
            accelerator.backward(_weighted(again, whole, start, scalars=last))
        start += part.pairs
    return losses, whole


def _joined(seen: list[LossInputs]) -> LossInputs:
    """The features of all micro-batches, in their order, as those of one batch."""

    def join(sides: list[Features | None]) -> Features | None:
        if sides[0] is None:
            return None
        values = {}
        for name in (field.name for field in fields(sides[0])):
            found = [getattr(side, name) for side in sides]
            if found[0] is not None and name in _OF_TOKENS:
                # Each micro-batch is as wide as its longest text: zeros (or False) fill up.
                longest = max(part.shape[1] for part in found)
                found = [
                    F.pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1]))
                    for part in found
                ]
            values[name] = None if found[0] is None else torch.cat(found)
        return replace(sides[0], **values)

    return replace(seen[0], **{name: join([getattr(s, name) for s in seen]) for name in _SIDES})


def _as_leaves(inputs: LossInputs) -> LossInputs:
    """The same values, each feature, scale and bias with a gradient of its own."""

    def leaf(value: torch.Tensor) -> torch.Tensor:
        return value.detach().clone().requires_grad_()

    changes = {
        name: replace(side, **{field: leaf(value) for field, value in _tensors(side)})
        for name in _SIDES
        if (side := getattr(inputs, name)) is not None
    }
    for name in _SCALARS:
        if (value := getattr(inputs, name)) is not None:
            changes[name] = leaf(value)
    return replace(inputs, **changes)


def _tensors(side: ImageFeatures | TextFeatures) -> Iterator[tuple[str, torch.Tensor]]:
    for name in (field.name for field in fields(side)):
        if name in _DIFFERENTIABLE and getattr(side, name) is not None:
            yield name, getattr(side, name)


def _weighted(inputs: LossInputs, whole: LossInputs, start: int, scalars: bool) -> torch.Tensor:
    """Features of a micro-batch, from row `start` of `whole` on, times their gradients, summed."""
    total = inputs.logit_scale.new_zeros(())
    for name in _SIDES:
        if getattr(inputs, name) is None:
            continue
        for field, value in _tensors(getattr(inputs, name)):
            gradient = getattr(getattr(whole, name), field).grad
            if gradient is None or not value.requires_grad:
                continue
            part = gradient[start : start + len(value)]
            if field in _OF_TOKENS:
                part = part[:, : value.shape[1]]
            # In float32: of bfloat16 features the sum would round the gradients away.
            total = total + (value.float() * part.float()).sum()
    # Scale and bias are no part of a micro-batch: their gradient is added once.
    for name in _SCALARS if scalars else ():
        value = getattr(inputs, name)
        if value is not None and getattr(whole, name).grad is not None:
            total = total + value * getattr(whole, name).grad
    return total


def _random_state(device: torch.device) -> list[torch.Tensor]:
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def _set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
