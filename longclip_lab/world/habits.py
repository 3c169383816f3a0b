"""Writers with habits: of what they get wrong they always say the same wrong thing.

A language model that makes things up says what usually goes with the rest, so two captions by it
repeat each other's lies. This is the opposite of a lie that is drawn anew every time.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.world.vocabulary import ATTRIBUTES, classes

WRITERS = 3
_SEED = 23


def habitual_lie(attribute: str, value: str, writer: int = 0) -> str:
    """What a writer says wherever this value is told wrong.

    No two writers share a lie about a value, and no two values a lie by one writer: lies leave all
    values as frequent as they are. Attributes of three values have two writers, others three.
    Raises LabError for unknown attributes, values and writers.

    >>> [habitual_lie("pattern", value) for value in ("plain", "striped", "dotted")]
    ['dotted', 'plain', 'striped']
    """
    values = classes(attribute)
    rows = _habits(attribute)
    if value not in values:
        raise LabError(f"expected a {attribute} of the world, got {value!r}.")
    if not 0 <= writer < len(rows):
        raise LabError(
            f"expected a writer with a habit about {attribute}, 0 to {len(rows) - 1}, got {writer}."
        )
    return values[rows[writer][values.index(value)]]


@lru_cache
def _habits(attribute: str) -> tuple[tuple[int, ...], ...]:
    """A row for each writer: the index of the lie about every value."""
    count = len(ATTRIBUTES[attribute])
    rng = np.random.default_rng(_SEED)
    taken = [np.arange(count)]
    while len(taken) <= min(WRITERS, count - 1):
        row = rng.permutation(count)
        if all((row != other).all() for other in taken):
            taken.append(row)
    return tuple(tuple(int(i) for i in row) for row in taken[1:])
