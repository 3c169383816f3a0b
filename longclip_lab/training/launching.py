"""`train(..., processes=N)`: the same training in N processes of this machine.

For notebooks, scripts and the command line. Each process is a new one (torch.multiprocessing,
"spawn"): forking a notebook's kernel deadlocks as soon as it has used CUDA or threads. Across
machines start the command with torchrun instead:
`torchrun --nnodes N --nproc-per-node 8 ... -m longclip_lab.cli train ...`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.multiprocessing as mp

from longclip_lab.errors import LabError, LabWarning, PeerLostError, StoppedError
from longclip_lab.models import Clip, load, save
from longclip_lab.training.faults import listening
from longclip_lab.training.log import Progress
from longclip_lab.training.peers import LOST, lost

if TYPE_CHECKING:
    from longclip_lab.training.runs import Run

GRACE = 10.0
"""Seconds that the other processes have to end by themselves when one has died."""
_BAD = 2


def train_in_processes(
    processes: int,
    clip: Clip | None,
    arguments: dict[str, Any],
    bar: Progress,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> Run:
    """`training.train(clip, **arguments)` in `processes` processes; returns the first one's run.

    Rows of the log, warnings and errors come back as they arise. If a process dies the others are
    ended. Raises PeerLostError for that, and whatever `train` raises.
    """
    check_can_launch(processes, arguments.get("data"))
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="longclip-lab-") as home, listening() as stop:
        if clip is not None:
            save(clip, Path(home) / "start")
        given = (processes, free_port(), home, clip is not None, arguments, messages)
        context = mp.start_processes(
            _work, given, nprocs=processes, join=False, start_method="spawn"
        )
        listener = _Listener(messages, bar, on_step)
        told = False
        try:
            while not _joined(context, listener):
                listener.hear()
                if stop.asked and not told:
                    told = True
                    _send(context, signal.SIGTERM)
        except BaseException:
            _send(context, signal.SIGKILL)
            raise
        listener.hear()
        if listener.error is not None:
            raise listener.error
        return replace(listener.run, model=load(Path(home) / "model"))


def check_can_launch(processes: int, data: Any) -> None:
    """Raise LabError unless so many processes can be started here."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LabError(
            f"This is already one of {os.environ['WORLD_SIZE']} processes of a launcher; leave "
            "processes=1 there."
        )
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise LabError(f"There are {gpus} GPUs for {processes} processes; give at most {gpus}.")
    home = type(data).__module__
    if home == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise LabError(
            f"The data are of the class {type(data).__name__}, which only this notebook knows. "
            "Other processes need it in a module; or use longclip_lab.data.Pairs."
        )


def _joined(context: mp.ProcessContext, listener: _Listener) -> bool:
    """Whether all processes have ended well. Raises what one of them has died of."""
    try:
        return context.join(timeout=0.1, grace_period=GRACE)
    except mp.ProcessExitedException:
        pass
    except mp.ProcessRaisedException:
        listener.hear()
        if listener.error is None and not _killed(context):
            raise
    listener.hear()
    killed = _killed(context)
    heard = listener.error
    if heard is not None and not (killed and isinstance(heard, PeerLostError)):
        raise heard
    if any(code == LOST for _, code in _failed(context)):
        raise PeerLostError(lost("A process"))
    number, code = next(iter(killed or _failed(context)))
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    raise PeerLostError(
        f"Process {number} of {len(context.processes)} was ended {how}, so the others were ended "
        "too. A run with a folder goes on from its last checkpoint with resume=True (--resume)."
    )


def _killed(context: mp.ProcessContext) -> list[tuple[int, int]]:
    """Processes that a signal other than our own has ended, with the signal."""
    ours = -signal.SIGTERM
    return [(n, code) for n, code in _failed(context) if code < 0 and code != ours]


def _failed(context: mp.ProcessContext) -> list[tuple[int, int]]:
    codes = [process.exitcode for process in context.processes]
    return [(number, code) for number, code in enumerate(codes) if code]


def _send(context: mp.ProcessContext, number: signal.Signals) -> None:
    for process in context.processes:
        if process.is_alive():
            os.kill(process.pid, number)


class _Listener:
    """Takes what the processes say."""

    def __init__(
        self,
        messages: Any,
        bar: Progress,
        on_step: Callable[[dict[str, Any]], None] | None,
    ):
        self.messages, self.bar, self.on_step = messages, bar, on_step
        self.run: Run | None = None
        self.error: LabError | None = None

    def hear(self) -> None:
        """Everything that has been said so far."""
        while not self.messages.empty():
            what, content = self.messages.get()
            if what == "row":
                self.bar.reach(content)
                if self.on_step is not None:
                    self.on_step(content)
            elif what == "warning":
                warnings.warn(content, LabWarning, stacklevel=4)
            elif what == "error":
                self.error = self.error or content
            else:
                self.run = content


def _work(
    rank: int,
    processes: int,
    port: int,
    home: str,
    has_model: bool,
    arguments: dict[str, Any],
    messages: Any,
) -> None:
    """One of the processes."""
    from longclip_lab.training.runs import train

    _take_place(rank, processes, port)
    with _warnings_to(messages if rank == 0 else None):
        try:
            clip = load(Path(home) / "start") if has_model else None
            on_step = (lambda row: messages.put(("row", row))) if rank == 0 else None
            run = train(clip, **arguments, progress=False, on_step=on_step)
        except StoppedError as error:
            if rank == 0:
                messages.put(("error", error))
            return
        except LabError as error:
            messages.put(("error", error))
            sys.exit(_BAD)
        if rank == 0:
            save(run.model, Path(home) / "model")
            messages.put(("run", replace(run, model=None)))


def _take_place(rank: int, processes: int, port: int) -> None:
    """Tell torch and accelerate which of how many this process is."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@contextmanager
def _warnings_to(messages: Any) -> Iterator[None]:
    """Warnings of the library become messages; of all processes the first one's are enough."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, LabWarning):
                shown(message, category, *place)
            elif messages is not None:
                messages.put(("warning", str(message)))

        warnings.showwarning = show
        yield


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
