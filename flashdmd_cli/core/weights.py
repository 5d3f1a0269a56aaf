"""Strict loading of weights: a partly loaded network would still run, but give wrong results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from flashdmd_cli.core.unfit import Unfit

Network = TypeVar("Network", bound=nn.Module)


def fit(net: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Replace the parameters and buffers of `net`, in place, by `tensors` of the same names; returns `net`.

    Raises Unfit, naming the first tensor that is missing, has another shape, or does not belong to the network.
    """
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    other = [name for name, value in wanted.items() if name in tensors and tensors[name].shape != value.shape]
    if missing:
        instead = f" ({extra[0]} is there instead)" if extra else ""
        raise Unfit(f"{missing[0]} is missing{_more(missing)}{instead}")
    if other:
        shapes = f"is {tuple(tensors[other[0]].shape)}, the configuration has {tuple(wanted[other[0]].shape)}"
        raise Unfit(f"{other[0]} {shapes}{_more(other)}")
    if extra:
        raise Unfit(f"{extra[0]} is not part of the network that the configuration describes{_more(extra)}")
    net.load_state_dict(tensors, strict=True, assign=True)
    return net


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
