"""Sharding of networks over the processes of a run by PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each process stores an equal part of the rows of every parameter. Before a block of layers is computed, its parameters
are gathered, and freed afterwards; in a backward pass, gradients are averaged over processes and split again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from flashdmd_cli.core.shards import whole
from flashdmd_cli.core.weights import fit


def shard_(net: Any) -> None:
    """Shard a stock diffusers network over all processes, in place; its values have to be the same on each of them.

    Blocks are those that diffusers never splits between devices (`_no_split_modules`), the rest is one more block.
    Parameters are gathered in float32, also for forward passes in bfloat16: autocast then converts what it converts in
    an unsharded network. Gathered in bfloat16, weights of norms near 1 would lose updates below 0.004.
    """
    options: dict[str, Any] = {
        "mesh": init_device_mesh(next(net.parameters()).device.type, (dist.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False),
        # Also for the outermost block: it would otherwise be gathered once and miss updates of the optimizer.
        "reshard_after_forward": True,
    }
    for module in reversed(list(net.modules())):  # inner blocks first
        if type(module).__name__ in (net._no_split_modules or ()):
            fully_shard(module, **options)
    fully_shard(net, **options)


def is_sharded(net: nn.Module) -> bool:
    """Whether `shard_` was applied to `net`."""
    return isinstance(net, FSDPModule)


@torch.no_grad()
def whole_network(net: Any) -> Any:
    """An unsharded copy of a sharded network, on the CPU of the first process. A collective call.

    The other processes get a network without values (on the meta device).
    """
    kind: Any = type(net).__bases__[1]  # `fully_shard` derives a class from the stock one
    with init_empty_weights(include_buffers=False):
        copy = kind.from_config(net.config)
    is_first = dist.get_rank() == 0
    tensors = {}
    for name, tensor in net.state_dict().items():
        value = whole(tensor)
        if is_first:
            tensors[name] = value.cpu()
    return fit(copy, tensors).eval() if is_first else copy


def shallow_copy(net: Any) -> Any:
    """A network with the same layers, of which some can be replaced without changing `net`.

    `copy.copy` would initialise the class that `fully_shard` derives, with the weights of a default configuration.
    """
    other: Any = object.__new__(type(net))
    other.__dict__.update(net.__dict__)
    other._modules = dict(net._modules)
    return other
