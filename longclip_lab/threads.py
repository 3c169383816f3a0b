"""Threads on a machine that others use too: set before torch starts them, never over your settings.

`import longclip_lab` calls `be_a_good_neighbour`. It acts only where it comes before the first
import of torch, since OpenMP reads the environment once; processes that are started later inherit
it. `python benchmarks/busy_machine.py` measures what it is worth.
"""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

from longclip_lab.errors import LabError

SPINS = 1000
"""Turns that a waiting thread of GNU OpenMP makes before it sleeps. By default it is 300,000, about
a millisecond, in which it takes the core from another process that could use it: beside two busy
processes on two cores the work then takes twice the processor time. OpenMP itself goes down to
1,000 where it has more threads than cores; it cannot know of other processes' threads. Never
spinning (OMP_WAIT_POLICY=passive) is as good in company, but costs a tenth alone: a step of a tiny
model has thousands of waits that are shorter than falling asleep and being woken."""

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def be_a_good_neighbour(
    environment: MutableMapping[str, str] = os.environ, quota: Path | None = None
) -> None:
    """Let waiting threads sleep early, and start no more of them than the machine lends cores.

    Sets GOMP_SPINCOUNT unless one of OMP_WAIT_POLICY, GOMP_SPINCOUNT and KMP_BLOCKTIME is set, and
    OMP_NUM_THREADS, unless it is set, where a container (a JupyterHub's, say) may use fewer cores
    than it sees: torch would start a thread for every core that it sees. `quota` is the file that
    says so, by default that of this process's control group.
    """
    if not any(environment.get(name) for name in _WAITING):
        environment["GOMP_SPINCOUNT"] = str(SPINS)
    lent = lent_cores(quota)
    if lent is not None and lent < _seen_cores():
        environment.setdefault("OMP_NUM_THREADS", str(lent))


def lent_cores(quota: Path | None = None) -> int | None:
    """Cores that the control group lends, rounded up, at least 1; None where it sets no limit.

    Linux, cgroup version 2: `cpu.max` holds microseconds of processor time in each period,
    "200000 100000" for two cores, "max 100000" for no limit.
    """
    try:
        given, period = (quota or Path("/sys/fs/cgroup/cpu.max")).read_text("ascii").split()
        return None if given == "max" else max(1, math.ceil(int(given) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # another system, or an older kernel
        return None


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are, as a launcher's RANK and WORLD_SIZE say: (0, 1).

    Raises LabError for what is no such number; a shell may have set it.
    """
    found = []
    for name, least in (("RANK", 0), ("WORLD_SIZE", 1)):
        text = os.environ.get(name) or str(least)
        if not text.isdecimal() or int(text) < least:
            raise LabError(
                f"The environment's {name} is {text!r}; expected a whole number from {least}, as a "
                f"launcher sets it. Without a launcher: unset {name}."
            )
        found.append(int(text))
    return found[0], found[1]


def _seen_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
