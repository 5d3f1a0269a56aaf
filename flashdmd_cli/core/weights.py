"""Strict loading of weights: a partly loaded network would still run, but give wrong results."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
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
    integers = [
        name for name, value in wanted.items()
        if name in tensors and value.is_floating_point() and not tensors[name].is_floating_point()
    ]  # fmt: skip
    if missing:
        instead = f" ({extra[0]} is there instead)" if extra else ""
        raise Unfit(f"{missing[0]} is missing{_more(missing)}{instead}")
    if other:
        shapes = f"is {tuple(tensors[other[0]].shape)}, the configuration has {tuple(wanted[other[0]].shape)}"
        raise Unfit(f"{other[0]} {shapes}{_more(other)}")
    if integers:
        raise Unfit(f"{integers[0]} is {tensors[integers[0]].dtype}, not a number with a fraction{_more(integers)}")
    if extra:
        raise Unfit(f"{extra[0]} is not part of the network that the configuration describes{_more(extra)}")
    net.load_state_dict(tensors, strict=True, assign=True)
    return net


def read_pickle(path: Path, device: torch.device | str = "cpu") -> Any:
    """The contents of a file of `torch.save`, read without executing code from the pickle; Unfit for any other file.

    torch's own message is not passed on, for it advises to turn this protection off.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of unusual pickles before it refuses them
            return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise Unfit(f"cannot be read: {error.strerror or error}") from None
    except Exception:  # a file with other contents can raise nearly any exception
        problem = "is no file of weights: it is damaged, of another kind, or holds objects that could run code"
        raise Unfit(problem, "name another file, or download it again") from None


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
