"""Counting the blocks of a tower from the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable


def layer_numbers(names: Iterable[str], pattern: str) -> set[int]:
    """The numbers that the group of `pattern` takes at the beginning of `names`."""
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def count_layers(names: Iterable[str], pattern: str) -> int:
    r"""How many different numbers the group of `pattern` takes at the beginning of `names`.

    >>> count_layers(["blocks.0.norm", "blocks.0.bias", "blocks.1.norm"], r"blocks\.(\d+)\.")
    2
    """
    return len(layer_numbers(names, pattern))
