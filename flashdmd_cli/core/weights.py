"""Weights into a network, every one of them: a network that is half read still draws, and what it draws is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from flashdmd_cli.core.unfit import Unfit

Network = TypeVar("Network", bound=nn.Module)


def fit(net: Network, held: Mapping[str, Tensor]) -> Network:
    """Put the tensors of `held` in place of the parameters and buffers of `net`, in place, and return it.

    Raises Unfit that names the first tensor that is missing, has another shape, or is not one of the network's.
    """
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in held]
    extra = [name for name in held if name not in wanted]
    other = [name for name, value in wanted.items() if name in held and held[name].shape != value.shape]
    if missing:
        found = f" ({extra[0]} is there instead)" if extra else ""
        raise Unfit(f"{missing[0]} is missing{_more(missing)}{found}")
    if other:
        shapes = f"is {tuple(held[other[0]].shape)}, the configuration asks for {tuple(wanted[other[0]].shape)}"
        raise Unfit(f"{other[0]} {shapes}{_more(other)}")
    if extra:
        raise Unfit(f"{extra[0]} is not part of the network that the configuration describes{_more(extra)}")
    net.load_state_dict(held, strict=True, assign=True)
    return net


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
