"""Noticing that another process of the run is gone or stuck, whatever the engine notices.

A launcher ends the processes of its own machine when one dies. A machine that vanishes, or a
process that hangs, leaves the others waiting in a collective for as long as the backend allows:
minutes to for ever. So each process says every few seconds that it is there, in the store that
torch already runs at MASTER_ADDR:MASTER_PORT, and listens to the others. A launcher that was killed
leaves its processes running, in a folder where the next start wants to write: they end as well.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from accelerate import Accelerator

from longclip_lab.errors import PeerLostError

LOST = 69
"""The exit code of a process that has lost another: EX_UNAVAILABLE of sysexits.h."""
EVERY, SILENCE = 3.0, 45.0
"""Seconds between two signs of life, and after how many without one a process counts as gone."""
_BROKEN = ("connection closed by peer", "connection reset by peer", "connection refused",
           "broken pipe", "nccl error", "remote process has exited")  # fmt: skip


@contextmanager
def watching(accelerator: Accelerator) -> Iterator[None]:
    """While the block runs, end this process with a message if another one is lost.

    Raises PeerLostError if a collective breaks because another process has ended.
    """
    if accelerator.num_processes == 1:
        yield
        return
    watch = Watch(accelerator.process_index, accelerator.num_processes)
    watch.start()
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in _BROKEN):
            raise
        raise PeerLostError(lost("Another process")) from error
    finally:
        watch.leave()


@contextmanager
def minding_launcher(every: float = EVERY) -> Iterator[None]:
    """While the block runs, end this process with a message if its launcher is gone.

    Raises PeerLostError if it is gone already: torch would look for it for many minutes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not _store_answers():
        raise PeerLostError(lost("The launcher"))
    gone, left = _launcher_gone(), threading.Event()

    def mind() -> None:
        while not left.wait(every):
            if gone():
                _end(lost("The launcher"))

    threading.Thread(target=mind, daemon=True, name="longclip-lab-launcher").start()
    try:
        yield
    finally:
        left.set()


def _launcher_gone() -> Callable[[], bool]:
    parent = multiprocessing.parent_process()
    if parent is not None:
        return lambda: not parent.is_alive()
    # Whoever else has set WORLD_SIZE, a shell perhaps, may end before its processes do.
    first = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    return lambda: first not in (None, os.getppid())


def _store_answers() -> bool:
    """Whether torchrun's store is there, which it starts before its processes."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        with socket.create_connection(address, timeout=SILENCE):
            return True
    except OSError:
        return False


def lost(who: str) -> str:
    """What to say of a process that is gone."""
    return (
        f"{who} of this run has ended or cannot be reached, so this one ends too. Look at what the "
        "others said; a run with a folder goes on from its last checkpoint with --resume."
    )


class Watch(threading.Thread):
    """Says that this process is there, and looks whether the others are."""

    _runs = 0

    def __init__(
        self,
        rank: int,
        processes: int,
        end: Callable[[str], None] | None = None,
        every: float = EVERY,
        silence: float = SILENCE,
    ):
        super().__init__(daemon=True, name="longclip-lab-watch")
        Watch._runs += 1  # all processes count alike
        self.rank, self.processes, self.every, self.silence = rank, processes, every, silence
        self.end = end or _end
        self.prefix = f"longclip-lab/{Watch._runs}"
        self.left = threading.Event()
        self.beats = 0

    def run(self) -> None:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        heard: dict[int, tuple[bytes, float]] = {}
        reached = time.monotonic()
        while not self.left.wait(self.every if self.beats else 0):
            try:
                if self.beats == 0:
                    patience = timedelta(seconds=self.silence)
                    client = dist.TCPStore(*address, is_master=False, timeout=patience)
                    self.store = dist.PrefixStore(self.prefix, client)
                self.beats += 1
                self.store.set(str(self.rank), str(self.beats))
                gone = self.silent(heard)
                reached = time.monotonic()
            except (RuntimeError, OSError):  # the store lives in the first process, or its launcher
                gone = 0 if time.monotonic() - reached > self.silence else None
            if gone is not None and not self.left.is_set():
                self.end(lost(f"Process {gone} of {self.processes}"))
                return

    def silent(self, heard: dict[int, tuple[bytes, float]]) -> int | None:
        """A process that has said nothing new for too long."""
        now = time.monotonic()
        for other in range(self.processes):
            key = str(other)
            said = self.store.get(key) if self.store.check([key]) else b""
            if other not in heard or heard[other][0] != said:
                heard[other] = said, now
            if said != _GOODBYE and now - heard[other][1] > self.silence:
                return other
        return None

    def leave(self) -> None:
        """Stop watching; the others do not miss a process that has said goodbye."""
        self.left.set()
        self.join(timeout=self.silence)
        if hasattr(self, "store"):
            try:
                self.store.set(str(self.rank), _GOODBYE.decode())
            except (RuntimeError, OSError):
                return  # whoever kept the store is gone, and nobody is left to be told


_GOODBYE = b"goodbye"


def _end(message: str) -> None:
    """Leave at once: the main thread may be waiting in a collective that never returns."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(LOST)
