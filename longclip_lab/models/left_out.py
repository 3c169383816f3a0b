"""Parts of a training checkpoint that no features need: named and counted, never just dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import torch


def leave_out(
    weights: Mapping[str, torch.Tensor], parts: Collection[str]
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """`weights` without the modules and buffers called `parts`, and how many tensors each had.

    A part is the beginning of a name up to a dot: "cls" or "text_encoder.cls". What is neither
    needed nor among `parts` stays, so that a strict load names it.

    >>> kept, left = leave_out({"head.w": torch.ones(1), "temp": torch.ones(1)}, {"head"})
    >>> sorted(kept), left
    (['temp'], {'head': 1})
    """
    kept: dict[str, torch.Tensor] = {}
    left: Counter[str] = Counter()
    for name, tensor in weights.items():
        found = [part for part in parts if name == part or name.startswith(f"{part}.")]
        if found:
            left[max(found, key=len)] += 1
        else:
            kept[name] = tensor
    return kept, dict(sorted(left.items()))
