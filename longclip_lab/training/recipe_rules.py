"""What values a recipe's fields may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from longclip_lab.errors import LabError, suggest


def _counts(value: float) -> bool:
    return value is None or (isinstance(value, int) and value >= 1)


def _not_negative(value: float) -> bool:
    return isinstance(value, int) and value >= 0


RULES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (
        ("k", "batch_size", "steps", "epochs", "text_parts", "pairs", "log_every",
         "checkpoint_every", "keep_checkpoints", "token_limit",
         "micro_batch", "lanes", "shuffle_window"),
        "a whole number of at least 1",
        _counts,
    ),
    (
        ("subcaptions",),
        'a whole number of at least 1, or "all"',
        lambda x: x == "all" or _counts(x),
    ),
    (
        ("warmup_steps", "workers", "seed", "num_corner", "skip_not_finite"),
        "a whole number of at least 0",
        _not_negative,
    ),
    (("learning_rate", "eps"), "a positive number", lambda x: 0 < x < math.inf),
    (("max_grad_norm", "checkpoint_minutes"), "a positive number", lambda x: x is None or x > 0),
    (
        ("short_weight", "long_weight", "margin", "weight_decay"),
        "0 or more",
        lambda x: 0 <= x < math.inf,
    ),
    (
        ("label_smoothing", "alt_text_noise", "hallucination", "skip_broken"),
        "from 0 to 1",
        lambda x: 0 <= x <= 1,
    ),
)  # fmt: skip
"""Fields, what is expected of them, and whether a value is that."""


def check(field: str, value: Any, expected: str, holds: Callable[[Any], bool]) -> None:
    """Raise LabError unless `holds(value)`."""
    try:
        good = holds(value)
    except TypeError:
        good = False
    if not good:
        raise LabError(f"A run's {field} must be {expected}; came {value!r}.")


def choice(field: str, value: str, known: Sequence[str]) -> None:
    """Raise LabError, with the near ones, unless `value` is one of `known`."""
    if value not in known:
        raise LabError(f"There is no {field} {value!r}. {suggest(str(value), known)}")
