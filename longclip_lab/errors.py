"""How the library speaks up: an error for bad input, a warning for a doubtful one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

_LONGEST = 3000
"""Characters of a message."""


class LabError(ValueError):
    """Bad input. The message says what was expected, what came and what to do.

    The command line prints it as one line and exits with code 2. What the message quotes may be as
    long as a file: its middle is left out then, counted.

    >>> str(LabError("No such name: " + 4000 * "a"))[1490:1530]
    'aaaaaaaaaa [1,014 characters] aaaaaaaaaa'
    """

    def __init__(self, message: str = ""):
        if len(message) > _LONGEST:
            left_out = len(message) - _LONGEST
            half = _LONGEST // 2
            message = f"{message[:half]} [{left_out:,} characters] {message[-half:]}"
        super().__init__(message)


class NotFiniteError(LabError):
    """A number is infinite or not a number where only finite ones make sense."""


class StoppedError(LabError):
    """A run was asked to stop, has saved its state and can go on from there.

    The command line exits with a code of its own, so that whoever started it starts it again.
    """


class PeerLostError(LabError):
    """Another process of the run has ended or cannot be reached.

    The command line exits with a code of its own, as after StoppedError.
    """


class LabWarning(UserWarning):
    """The call goes on, but its result may not mean what the caller thinks."""


@dataclass(frozen=True)
class Numbers:
    """Which numbers make sense somewhere; a bound that is not given does not bind.

    NaN, infinity, truth values and texts never do. Options of the command line carry one in their
    type, `Annotated[int, COUNT]`, and are checked before a command runs.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        # Written so that NaN is in no range.
        return (
            (isinstance(value, Integral) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        if self.at_least is not None and self.at_most is not None:
            return f"{kind} from {self.at_least:,} to {_short(self.at_most)}"
        bounds = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        told = [f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None]
        return f"{kind}, {' and '.join(told)}" if told else kind

    def check(self, name: str, value: Any) -> None:
        """Raise LabError, saying which numbers are allowed, unless `value` is one of them."""
        if value not in self:
            raise LabError(f"{name} must be {self}; came {value!r}.")


def _short(number: float) -> str:
    """
    >>> _short(1024), _short(10**12)
    ('1,024', '10^12')
    """
    power = len(str(number)) - 1
    return f"10^{power}" if number == 10**power and power > 6 else f"{number:,}"


COUNT = Numbers(at_least=1, at_most=10**12, whole=True)
"""Of things of which there must be one. The end keeps what is counted within 64 bits."""
MANY = Numbers(at_least=0, at_most=10**12, whole=True)
"""Of things of which there may be none."""
PROCESSES = Numbers(at_least=1, at_most=1024, whole=True)
WORKERS = Numbers(at_least=0, at_most=1024, whole=True)
SEED = Numbers(at_least=0, at_most=2**32 - 1, whole=True)
"""What every random generator in use takes."""
POSITIVE = Numbers(above=0)
NOT_NEGATIVE = Numbers(at_least=0)
SHARE = Numbers(at_least=0, at_most=1)


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the names near to `name`, or all known names when none is near.

    >>> suggest("tinny", ["tiny", "ViT-B-16"])
    'Did you mean tiny?'
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {', '.join(near)}?"
    return f"Known names: {', '.join(known)}."
