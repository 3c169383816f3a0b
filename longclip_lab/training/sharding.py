"""Weights, gradients and moments shared out over the processes (FSDP2), and put together again.

With `Recipe.sharding="full"` each process holds 1/W of every weight, of its gradient and of AdamW's
moments; a block's weights are gathered when it runs. What is written to disk is always whole, so
that any number of processes, sharded or not, can go on with it.

T rows of a weight, W processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from longclip_lab.errors import LabError


def shard(towers: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Share the weights of `towers` out over all processes, in place, block by block.

    Scalars (logit scale and bias) stay whole everywhere: FSDP2 cannot cut them.
    Raises LabError for a torch that cannot leave them out.
    """
    towers.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
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
