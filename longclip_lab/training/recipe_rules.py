"""What values a recipe's fields may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from longclip_lab.errors import (
    COUNT,
    MANY,
    SEED,
    SHARE,
    WORKERS,
    LabError,
    Numbers,
    suggest,
)

BATCH = Numbers(at_least=2, at_most=10**9, whole=True)
"""A contrastive loss tells a pair from the others of its batch: of one pair it is 0 and teaches
nothing."""
LARGEST = 10**6
"""Of rates and weights: their products stay within the range of float32."""
POSITIVE = Numbers(above=0, at_most=LARGEST)
NOT_NEGATIVE = Numbers(at_least=0, at_most=LARGEST)
LOGARITHM = Numbers(at_least=-20, at_most=1000)
"""Of a factor on the logits, which CLIP clamps at ln 100 = 4.6: below, it would be 0; where it
overflows, the loss says so."""
BIAS = Numbers(at_least=-1000, at_most=1000)
"""Of the logits; SigLIP starts at -10."""

NUMBERS: dict[Numbers, tuple[str, ...]] = {
    BATCH: ("batch_size",),
    COUNT: (
        "k", "lanes", "shuffle_window", "log_every", "checkpoint_every", "keep_checkpoints",
    ),
    MANY: ("warmup_steps", "num_corner", "skip_not_finite"),
    WORKERS: ("workers",),
    SEED: ("seed",),
    POSITIVE: ("learning_rate", "eps"),
    NOT_NEGATIVE: ("short_weight", "long_weight", "margin", "weight_decay"),
    SHARE: ("label_smoothing", "alt_text_noise", "hallucination", "skip_broken"),
}  # fmt: skip
"""Fields by the numbers that they may have."""

OPTIONAL_NUMBERS: dict[Numbers, tuple[str, ...]] = {
    COUNT: ("steps", "epochs", "text_parts", "pairs", "token_limit", "micro_batch"),
    POSITIVE: ("max_grad_norm", "checkpoint_minutes"),
    LOGARITHM: ("start_logit_scale", "max_logit_scale"),
    BIAS: ("start_logit_bias",),
}
"""Fields that may be None as well."""


def check_numbers(recipe: Any) -> None:
    """Raise LabError for the first field whose number makes no sense, saying which would."""
    for numbers, fields in NUMBERS.items():
        for field in fields:
            numbers.check(f"A run's {field}", getattr(recipe, field))
    for numbers, fields in OPTIONAL_NUMBERS.items():
        for field in fields:
            if getattr(recipe, field) is not None:
                numbers.check(f"A run's {field}", getattr(recipe, field))


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
