"""One process of a run: the command line, with its id and its exit code written down.

    torchrun ... cloud/worker.py COMMAND OPTIONS

A launcher answers every exit code of a process with its own 1. `cloud/launch.sh` gives the folder
LONGCLIP_LAB_NOTES, to know whom to pass a signal on to, and whether the run failed or was stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from longclip_lab.cli import main


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
    return code


if __name__ == "__main__":
    sys.exit(noted(sys.argv[1:]))
