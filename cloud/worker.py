"""One process of a run: the command line, with its id and its exit code written down.

    torchrun ... cloud/worker.py COMMAND OPTIONS

A launcher answers every exit code of a process with its own 1. `cloud/launch.sh` gives the folder
LONGCLIP_LAB_NOTES, to know whom to pass a signal on to, and whether the run failed or was stopped.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from longclip_lab.cli import STOPPED, main

PATIENCE = 600.0
"""Seconds that a process which has been stopped waits for those of its machine."""


def noted(arguments: list[str]) -> int:
    """`main`, between two notes: RANK.pid when it begins, RANK.code when it has ended by itself."""
    notes, rank = Path(os.environ["LONGCLIP_LAB_NOTES"]), os.environ["RANK"]
    (notes / f"{rank}.pid").write_text(f"{os.getpid()}\n", encoding="utf-8")
    code: int | str | None = 1
    try:
        code = main(arguments)
    except SystemExit as end:  # the command line's own help and complaints about options
        code = end.code
        raise
    finally:
        (notes / f"{rank}.code").write_text(f"{code}\n", encoding="utf-8")
    if code == STOPPED:
        wait_for_others(notes)
    return code


def wait_for_others(notes: Path) -> None:
    """Until all processes of this machine have ended: with the first that leaves, the launcher ends
    the others, and the main process may still be writing the checkpoint."""
    until = time.monotonic() + PATIENCE
    while len(list(notes.glob("*.code"))) < int(os.environ["LOCAL_WORLD_SIZE"]):
        if time.monotonic() > until:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(noted(sys.argv[1:]))
