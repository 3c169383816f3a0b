"""How the library speaks up: an error for bad input, a warning for a doubtful one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(ValueError):
    """Bad input. The message says what was expected, what came and what to do.

    The command line prints it as one line and exits with code 2.
    """


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
