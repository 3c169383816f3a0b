"""The record of a run while it goes: JSON lines, TensorBoard events, a progress bar."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO

from tqdm import tqdm

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write, decode_text, parse_json, to_json


def read_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The lines of a log up to `last_step`; a last line that a kill cut short is left out.

    What was not a number when it was written (null) is NaN again. Raises LabError, naming the
    line, for a file that is anything else.
    """
    if not path.exists():
        return []
    try:
        whole, _, rest = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise LabError(f"Cannot read {path}: {error.strerror}.") from None
    lines = decode_text(whole, str(path)).split("\n") if whole else []
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    # What follows the last line end, a kill may have cut short.
    with suppress(LabError):
        rows += [_row(rest, str(path))] if rest else []
    return [row for row in rows if row["step"] <= last_step]


def _row(line: str | bytes, where: str) -> dict[str, Any]:
    """One line of a log. Raises LabError for anything else, as the log would be written anew."""
    try:
        row = parse_json(line, where, allow_nan=True)  # earlier logs have NaN
    except LabError as error:
        raise LabError(f"{error} Repair the log, or move it away to go on without it.") from None
    row = row if isinstance(row, dict) else {}
    step, texts = row.get("step"), [key for key, value in row.items() if not _is_number(value)]
    if isinstance(step, bool) or not isinstance(step, int) or texts:
        what = f"no number under {texts[0]!r}" if texts else "no step"
        raise LabError(
            f"{shorten(f'{where} is no line of a training log: it has {what}', 1000)}. Repair the "
            "log, or move it away to go on without it."
        )
    return {key: math.nan if value is None else value for key, value in row.items()}


def _is_number(value: Any) -> bool:
    """Whether a log can hold `value`: null stands for NaN, and what a float cannot hold is none."""
    return value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)


def _line(row: dict[str, Any]) -> str:
    """A row as a line of JSON, which has no NaN: null stands for what is not finite."""
    return to_json({k: value if math.isfinite(value) else None for k, value in row.items()}) + "\n"


class RunLog:
    """Keeps `history` and writes it to FOLDER/log.jsonl; without a folder it only keeps it.

    Continuing after step `done` drops the later lines: their steps will be done again.
    """

    def __init__(self, folder: Path | None, done: int, tensorboard: bool):
        self.history: list[dict[str, Any]] = []
        self.file: TextIO | None = None
        self.events: Any = None
        if folder is None:
            return
        path = folder / "log.jsonl"
        self.history = read_log(path, done)
        atomic_write(path, "".join(map(_line, self.history)))
        self.file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Record one step; `row["step"]` counts from 1."""
        self.history.append(row)
        if self.file is not None:
            self.file.write(_line(row))
            self.file.flush()
        if self.events is not None:
            for name, value in row.items():
                if name != "step":
                    self.events.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Close the files; the history stays."""
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()


class Progress:
    """A bar with the loss, the rate and the time left."""

    def __init__(self, total: int | None, done: int, name: str, shown: bool):
        self.bar = tqdm(total=total, initial=done, desc=name, unit="step", disable=not shown)

    def reach(self, row: dict[str, Any]) -> None:
        """Advance to the step of a row, from wherever the bar stands."""
        self.bar.update(row["step"] - 1 - self.bar.n)
        self.step(row)

    def step(self, row: dict[str, Any] | None) -> None:
        """Advance by one step; a skipped one has no row."""
        if row is None:
            self.bar.update(1)
            return
        rate = f"{row['samples_per_s']:.3g}/s"
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", pairs=rate, refresh=False)
        self.bar.update(1)

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self.bar.close()
