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

from longclip_lab.objectives import ImageSide, LossParts, Step, TextSide
from longclip_lab.training.data import Batch
from longclip_lab.training.distributed import no_exchange

Side = TypeVar("Side", ImageSide, TextSide)
_DIFFERENTIABLE = ("features_BD", "features_BCD", "tokens_BPD", "tokens_BTD")
_OF_TOKENS = ("tokens_BTD", "mask_BT")


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """`batch` in runs of `size` pairs; the last one may be smaller."""
    pairs = len(batch.pixels_B3HW if batch.stored_BS is None else batch.stored_BS)
    for start in range(0, pairs, size):
        yield batch.rows(start, start + size)


def backward_in_parts(
    accelerator: Accelerator,
    towers: nn.Module,
    batch: Batch,
    size: int,
    loss: Callable[[Step], LossParts],
) -> tuple[LossParts, Step]:
    """Add the gradient of `loss` on the whole `batch` to the weights, `size` pairs at a time.

    `towers`, as `accelerator` prepared them, turn a batch into what `loss` sees; `loss` may gather
    features from all processes. The second pass draws the random numbers of the first. Processes
    exchange gradients once, in the last micro-batch. Returns the loss and the batch as it saw it.
    Raises whatever `loss` raises, before the second pass.
    """
    parts = list(micro_batches(batch, size))
    states, steps = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(accelerator.device))
            steps.append(towers(part))
    whole = _as_leaves(_joined(steps))
    losses = loss(whole)
    losses.total.backward()
    start = 0
    for index, (part, state, step) in enumerate(zip(parts, states, steps, strict=True)):
        _set_random_state(state, accelerator.device)
        last = index == len(parts) - 1
        count = len(step.image.features_BD)
        with nullcontext() if last else no_exchange(accelerator, towers):
            again = towers(part)
            # A sum whose gradient is what the loss has sent to the features.
            accelerator.backward(_weighted(again, whole, start, scalars=last))
        start += count
    return losses, whole


def _joined(steps: list[Step]) -> Step:
    first = steps[0]
    sides = {
        name: None if getattr(first, name) is None else _join([getattr(s, name) for s in steps])
        for name in ("image", "short", "long")
    }
    return replace(first, **sides)


def _join(sides: list[Side]) -> Side:
    values = {}
    for name in (field.name for field in fields(sides[0])):
        found = [getattr(side, name) for side in sides]
        if found[0] is not None and name in _OF_TOKENS:
            found = _padded(found)
        values[name] = None if found[0] is None else torch.cat(found)
    return replace(sides[0], **values)


def _padded(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each micro-batch is as wide as its longest text; zeros (or False) fill the others up."""
    longest = max(part.shape[1] for part in parts)
    return [F.pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts]


def _as_leaves(step: Step) -> Step:
    """The same values, each feature, scale and bias with a gradient of its own."""
    sides = {
        name: replace(side, **{field: _leaf(value) for field, value in _features(side)})
        for name in ("image", "short", "long")
        if (side := getattr(step, name)) is not None
    }
    scalars = {name: _leaf(value) for name, value in _scalars(step)}
    return replace(step, **sides, **scalars)


def _leaf(value: torch.Tensor) -> torch.Tensor:
    return value.detach().clone().requires_grad_()


def _features(side: ImageSide | TextSide) -> Iterator[tuple[str, torch.Tensor]]:
    for name in (field.name for field in fields(side)):
        value = getattr(side, name)
        if name in _DIFFERENTIABLE and value is not None:
            yield name, value


def _scalars(step: Step) -> Iterator[tuple[str, torch.Tensor]]:
    for name in ("logit_scale", "logit_bias"):
        if getattr(step, name) is not None:
            yield name, getattr(step, name)


def _weighted(step: Step, whole: Step, start: int, scalars: bool) -> torch.Tensor:
    """Features of a micro-batch, from row `start` of `whole` on, times their gradients, summed."""
    total = step.logit_scale.new_zeros(())
    for name in ("image", "short", "long"):
        side = getattr(step, name)
        if side is None:
            continue
        for field, value in _features(side):
            gradient = getattr(getattr(whole, name), field).grad
            if gradient is None or not value.requires_grad:
                continue
            part = gradient[start : start + len(value)]
            if field in _OF_TOKENS:
                part = part[:, : value.shape[1]]
            total = total + (value.float() * part.float()).sum()
    if scalars:
        for name, value in _scalars(step):
            gradient = getattr(whole, name).grad
            if gradient is not None:
                total = total + value * gradient
    return total


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
