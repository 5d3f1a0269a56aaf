"""Sharded tensors: each process of a run has some rows of a tensor, in the order of the processes (FSDP2's layout)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only some rows of `tensor`, whose shape is nevertheless that of the whole."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor, or the tensor itself; shares memory with it and has no gradient."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> slice:
    """Which rows (indices of the first dimension) of a sharded tensor this process has; they are split as by
    `torch.chunk`, so that the last processes may have none."""
    assert isinstance(tensor, DTensor)
    num, mesh = tensor.shape[0], tensor.device_mesh
    share, rank = -(-num // mesh.size()), mesh.get_local_rank()
    return slice(min(rank * share, num), min((rank + 1) * share, num))


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor on every process, or the tensor itself. A collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip_gradients_(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients so that their joint norm is at most `limit`; returns the norm (scalar) before. A collective call
    if they are sharded."""
    with torch.no_grad():
        return whole(nn.utils.clip_grad_norm_(parameters, limit))
