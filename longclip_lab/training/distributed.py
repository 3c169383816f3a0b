"""Many processes: FSDP2, the heartbeat between ranks, stopping together.

FOLDER/not-finite/step-000012.json   the pairs of a batch whose loss or gradient was not finite

With `Recipe.sharding="full"` each process holds 1/W of every weight, of its gradient and of AdamW's
moments; a block's weights are gathered when it runs. What is written to disk is always whole, so
that any number of processes, sharded or not, can go on with it.

T rows of a weight, W processes.

A launcher ends the processes of its own machine when one dies. A machine that vanishes, or a
process that hangs, leaves the others waiting in a collective for as long as the backend allows:
minutes to for ever. So each process says every few seconds that it is there, in the store that
torch already runs at MASTER_ADDR:MASTER_PORT, and listens to the others. A launcher that was killed
leaves its processes running, in a folder where the next start wants to write: they end as well.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from longclip_lab.errors import LabError, NotFiniteError, PeerLostError
from longclip_lab.files import atomic_write, to_json
from longclip_lab.threads import rank_and_size

# --- What can go wrong in a long run: a machine that is taken away, a loss that is not a ---

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


def any_rank(accelerator: Accelerator, *asked: bool) -> list[bool]:
    """For each question whether any process says yes; all processes get the same answers."""
    if accelerator.num_processes == 1:
        return list(asked)
    # One collective for all questions, every step.
    flags = torch.tensor(asked, dtype=torch.float32, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(flags, reduction="sum").tolist()]


@contextmanager
def handle_sigterm() -> Iterator[StopRequest]:
    """A request to stop is heard inside the block. Outside the main thread none can be."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # The handler only remembers: a checkpoint in the middle of a step would be none.
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


# --- Weights, gradients and moments shared out over the processes (FSDP2), and put together ---


def shard(towers: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Share the weights of `towers` out over all processes, in place, block by block.

    Scalars (logit scale and bias) stay whole everywhere: FSDP2 cannot cut them.
    Raises LabError for a torch that cannot leave them out.
    """
    towers.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Block by block, so that no more than one is whole at a time, and the next one is fetched while
    # one is computed.
    for block in _blocks(towers):
        fully_shard(block, mesh=mesh)
    try:
        fully_shard(towers, mesh=mesh, ignored_params=set(scalars(towers)))
    except TypeError:
        raise LabError(
            f"Sharding needs torch 2.7 or newer; this is {torch.__version__}. Upgrade it, or train "
            'with sharding="none".'
        ) from None
    return towers


def _blocks(towers: nn.Module) -> Iterator[nn.Module]:
    """The layers of the transformers: runs of two or more modules of one kind, with weights."""
    for module in towers.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        kinds = {type(child) for child in module}
        # A list of blocks looks the same in open_clip, timm and transformers, whatever it is
        # called.
        if len(kinds) == 1 and all(len(list(child.children())) > 1 for child in module):
            yield from module


def scalars(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are one number."""
    return [parameter for parameter in module.parameters() if parameter.ndim == 0]


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights are shared out."""
    return isinstance(module, FSDPModule)


def average_scalars(towers: nn.Module, accelerator: Accelerator) -> None:
    """Average the gradients of what is not sharded, as FSDP2 does with all others."""
    for parameter in scalars(towers):
        if parameter.grad is not None:
            # Scale and bias get a gradient from every process's pairs.
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


@contextmanager
def no_exchange(accelerator: Accelerator, towers: nn.Module) -> Iterator[None]:
    """Gradients of a backward pass inside stay in this process and add up."""
    if not is_sharded(towers):
        with accelerator.no_sync(towers):
            yield
        return
    towers.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        towers.set_requires_gradient_sync(True)


@torch.no_grad()
def clip_gradient(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Cut the gradient to the norm `limit`; returns the norm before, the same in all processes.

    torch.nn.utils.clip_grad_norm_, for gradients of which some are sharded.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # torch's own function refuses to mix sharded gradients with whole ones.
    kinds = ([g for g in gradients if isinstance(g, DTensor) is kind] for kind in (True, False))
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    norm = torch.linalg.vector_norm(torch.stack([one.reshape(()) for one in norms]))
    scale = limit / (norm + 1e-6)  # as torch has it
    if scale < 1:
        for gradient in gradients:
            local(gradient).mul_(scale)
    return norm


def whole(value: Any) -> Any:
    """A tensor with all its parts; every process must ask at the same time."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part that this process holds; changing it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_here(parameter: torch.Tensor) -> torch.Tensor:
    """The numbers of the rows of `parameter` that this process holds."""
    rows_T = torch.arange(len(parameter), device=parameter.device)
    if not isinstance(parameter, DTensor):
        return rows_T
    return distribute_tensor(rows_T, parameter.device_mesh, [Shard(0)]).to_local()


def whole_state(state: Any) -> Any:
    """A module's or optimizer's state with whole tensors on the CPU where they were sharded.

    Every process must ask at the same time; all get the same.
    """
    if isinstance(state, dict):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole_state(value) for value in state]
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """`model.load_state_dict(weights)`: each process takes its part of a sharded weight.

    Raises RuntimeError as that does.
    """
    own = model.state_dict()
    model.load_state_dict({name: _like(own.get(name), weight) for name, weight in weights.items()})


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict(state)`: each process takes its part of sharded moments.

    Raises ValueError as that does.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # AdamW's state is keyed by a parameter's number, in the order of the groups.
    moments = {
        number: {name: _like(parameters[number], value) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
        if number < len(parameters)
    }
    optimizer.load_state_dict({**state, "state": moments})


def _like(pattern: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
    """`value` shared out as `pattern` is; AdamW's count of steps is a scalar and stays one."""
    if not isinstance(pattern, DTensor) or value.ndim == 0:
        return value
    # Every process has read the whole file: nothing needs to be sent.
    place = pattern.device_mesh, pattern.placements
    return distribute_tensor(value.to(pattern.device), *place, src_data_rank=None)


# --- Noticing that another process of the run is gone or stuck, whatever the engine notices ---

LOST = 69
"""The exit code of a process that has lost another: EX_UNAVAILABLE of sysexits.h."""
EVERY, SILENCE = 3.0, 45.0
"""Seconds between two signs of life, and after how many without one a process counts as gone."""
_BROKEN = ("connection closed by peer", "connection reset by peer", "connection refused",
           "broken pipe", "nccl error", "remote process has exited")  # fmt: skip


@contextmanager
def heartbeat(accelerator: Accelerator) -> Iterator[None]:
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
def exit_with_parent(every: float = EVERY) -> Iterator[None]:
    """While the block runs, end this process with a message if its launcher is gone.

    Raises PeerLostError if it is gone already: torch would look for it for many minutes.
    """
    if rank_and_size()[1] == 1:
        yield
        return
    # torchrun starts the store before its processes: no store, no launcher.
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
                # Compared by content, not by time: clocks of machines differ.
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
        """Stop heartbeat; the others do not miss a process that has said goodbye."""
        # First stop, then say goodbye: a late sign of life would overwrite it.
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
    # Not sys.exit: that would wait for the main thread, and so for the collective.
    os._exit(LOST)
