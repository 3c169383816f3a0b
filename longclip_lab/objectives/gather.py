"""One batch out of many processes, with gradients.

Shapes: B batch of one process, G global batch (processes x B), D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def gather(features_BD: torch.Tensor) -> torch.Tensor:
    """The global batch: the features of all processes in rank order, [B, D] -> [G, D].

    Every process must bring the same B. Without a process group, or with one process, the
    features come back as they are. The backward pass sums the gradients that all processes
    send to a feature. So when every process computes the same loss on the global batch, or the
    `all_reduce_loss` of their shares, and the parameters' gradients are averaged over processes, as
    DistributedDataParallel and accelerate do, the result is the gradient that one process with
    the whole batch has.
    """
    if not _many():
        return features_BD
    return _Gather.apply(features_BD)


def local_rows(features_GD: torch.Tensor) -> slice:
    """Which rows of a gathered batch are this process's: all in one process."""
    if not _many():
        return slice(None)
    share = len(features_GD) // dist.get_world_size()
    return slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)


def all_reduce_loss(share: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of each one's share of a loss, a scalar; the same in all of them.

    For losses of `local_rows` alone, so that no process holds a table of G x G logits.
    """
    return _AllReduceLoss.apply(share) if _many() else share


def pad_to_longest(values: torch.Tensor) -> torch.Tensor:
    """[B, T, ...] with zeros (False) up to the largest T that any process has, to be gathered."""
    if not _many():
        return values
    longest = torch.tensor(values.shape[1], device=values.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - values.shape[1]
    return F.pad(values, (0, 0) * (values.ndim - 2) + (0, missing))


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _AllReduceLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: torch.Tensor) -> torch.Tensor:
        summed = share.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        # Each process has the gradient of its own share alone. `gather` sums what all send to a
        # feature, and data parallelism then averages over processes: hence their number.
        return grad * dist.get_world_size()


class _Gather(torch.autograd.Function):
    # torch's own differentiable gathers are either deprecated (torch.distributed.nn) or
    # private and renamed between 2.6 and 2.14 (_functional_collectives). These two
    # collectives are public and stable, and every backend has them.

    @staticmethod
    def forward(ctx: Any, features_BD: torch.Tensor) -> torch.Tensor:
        ctx.batch = len(features_BD)
        parts = [torch.empty_like(features_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GD: torch.Tensor) -> torch.Tensor:
        # A feature is in the loss of every process: its gradient is the sum over all of them.
        summed_GD = grad_GD.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_GD)
        return summed_GD.narrow(0, dist.get_rank() * ctx.batch, ctx.batch).contiguous()
