"""What can go wrong in a long run: a machine that is taken away, a loss that is not a number.

FOLDER/not-finite/step-000012.json   the pairs of a batch whose loss or gradient was not finite
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from longclip_lab.errors import NotFiniteError
from longclip_lab.files import atomic_write, to_json

NOT_FINITE = "not-finite"


class NotFiniteStepError(NotFiniteError):
    """A step whose features, loss or gradient are not finite; it has updated nothing."""

    def __init__(self, step: int, message: str):
        self.step = step
        super().__init__(f"Step {step}: {message}")


class StopRequest:
    """Remembers a SIGTERM, as clouds send it before they take a spot machine away."""

    def __init__(self) -> None:
        self.asked = False

    def remember(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        self.asked = True


def agreed(accelerator: Accelerator, *asked: bool) -> list[bool]:
    """For each question whether any process says yes; all processes get the same answers."""
    if accelerator.num_processes == 1:
        return list(asked)
    flags = torch.tensor(asked, dtype=torch.float32, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(flags, reduction="sum").tolist()]


@contextmanager
def listening() -> Iterator[StopRequest]:
    """A request to stop is heard inside the block. Outside the main thread none can be."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request.remember)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def note_not_finite(folder: Path, error: NotFiniteStepError, pairs: list[Any]) -> Path:
    """Write down which pairs the batch had, so that they can be looked at."""
    path = folder / NOT_FINITE / f"step-{error.step:06d}.json"
    facts: dict[str, Any] = {"step": error.step, "error": str(error), "pairs": pairs}
    atomic_write(path, to_json(facts) + "\n")
    return path


def steps_not_finite(folder: Path | None, done: int) -> list[int]:
    """The steps up to `done` that were skipped before a run was continued."""
    if folder is None:
        return []
    files = sorted((folder / NOT_FINITE).glob("step-*.json"))
    steps = [int(path.stem.removeprefix("step-")) for path in files]
    return [step for step in steps if step <= done]
