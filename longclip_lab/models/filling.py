"""Weights into modules: floating point numbers that are finite, all of them and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten

import torch
from torch import nn

from longclip_lab.errors import LabError, NotFiniteError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BUFFERS = re.compile(
    r"(.*\.)?(n_averaged|num_batches_tracked|position_ids|relative_position_index|attn_mask"
    r"|\w*(queue|ptr)\w*)"
)
"""Indices, counters and masks: beside the weights, and rarely floating point numbers."""


def fill(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """`module.load_state_dict(weights)`, all of them and nothing else, after `check_floats`.

    Raises LabError for what are no floating point numbers, RuntimeError for other names or shapes.
    """
    own = module.state_dict()
    places = {name for name, tensor in own.items() if tensor.is_floating_point()}
    check_floats({name: tensor for name, tensor in weights.items() if name in places})
    module.load_state_dict(weights)


def is_buffer(name: str) -> bool:
    """True for the names of indices, counters and masks that stand beside weights."""
    return _BUFFERS.fullmatch(name) is not None


def check_floats(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise LabError unless all are plain tensors of 16 to 64 bit floating point numbers.

    Loading would take quantised numbers as they are stored, without their scales, and drop the
    imaginary part of complex ones.
    """
    kinds = {name: kind for name, tensor in weights.items() if (kind := not_floats(tensor))}
    if kinds:
        name, kind = next(iter(kinds.items()))
        raise LabError(
            f"{len(kinds)} of {len(weights)} weights are no floating point numbers, such as "
            f"'{name}', which is {kind}. If they are quantised, their scales are kept elsewhere: "
            "save the model in float16, bfloat16 or float32."
        )


def not_floats(tensor: torch.Tensor) -> str | None:
    """What a tensor is that is no plain one of 16 to 64 bit floating point numbers; else None."""
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return None if tensor.dtype in _FLOATS else str(tensor.dtype).removeprefix("torch.")


def not_finite(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many values of which weights are infinite or not a number.

    Causal masks, which are meant to be infinite, do not count.
    """
    found = {}
    for name, tensor in weights.items():
        if tensor.dtype not in _FLOATS or tensor.is_meta or name.endswith("attn_mask"):
            continue
        # A sum is finite only if all its terms are, and much faster than a look at each.
        if not tensor.sum().isfinite() and (count := int((~tensor.isfinite()).sum())):
            found[name] = count
    return found


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise NotFiniteError, naming the weights, if those of the model `name` are not finite."""
    if bad := not_finite(weights):
        first, count = next(iter(bad.items()))
        raise NotFiniteError(
            f"{len(bad)} of the {len(weights)} weights of '{name}' are not finite, such as "
            f"'{first}' in {count} of {weights[first].numel()} values: its training has diverged, "
            "or the file is damaged. Take an earlier checkpoint."
        )


@contextmanager
def fitting(path: str | os.PathLike[str], complaint: str) -> Iterator[None]:
    """Inside the block a model is made of what stands in a file: whatever goes wrong is its fault.

    Raises LabError, "PATH COMPLAINT: reason", for any error; a LabError keeps its own words.
    """
    try:
        yield
    except NotFiniteError:
        raise
    except LabError as error:
        raise error if str(path) in str(error) else LabError(f"{path}: {error}") from error
    except Exception as error:  # sizes that do not fit raise whatever torch and others like
        reason = f"it has no weight {error}" if isinstance(error, KeyError) else str(error)
        reason = shorten(reason or type(error).__name__, 300)
        raise LabError(f"{path} {complaint}: {reason}") from error
