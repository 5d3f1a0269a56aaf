"""Frozen weights stored in 16 bits, half the memory of float32, while adapters and losses stay in float32.

Under autocast nothing is cast in a forward pass any more, since the weights have its format already. Without autocast,
on processors without native bfloat16, each layer casts its weights to the input's format when it is called.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _in_format_of(x: Tensor, weight: Tensor | None) -> Any:
    """`weight` in the format of `x`; unchanged under autocast, which casts both."""
    return weight if weight is None or torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _in_format_of(x, self.weight), _in_format_of(x, self.bias))


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _in_format_of(x, self.weight), _in_format_of(x, self.bias))


class _GroupNorm(nn.GroupNorm):
    """Autocast would compute norms in float32 and write outputs of 4 bytes; the kernels sum in float32 anyway."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(
                x, self.num_groups, _in_format_of(x, self.weight), _in_format_of(x, self.bias), self.eps
            )


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = _in_format_of(x, self.weight), _in_format_of(x, self.bias)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by their names in recipes and options."""
STORED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.GroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
}
"""Layers that can have 16-bit weights and inputs of another format."""


def store_in_bf16(net: nn.Module) -> nn.Module:
    """`store_in` with bfloat16."""
    return store_in(net, torch.bfloat16)


def store_in(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of `net` to a format of 16 bits, in place, so that it takes inputs of any format; returns it.

    Layers of other kinds with parameters are converted to float32.
    """
    for module in net.modules():
        if type(module) in STORED:
            module.to(dtype)
            module.__class__ = STORED[type(module)]
        elif type(module) not in STORED.values():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().float(), parameter.requires_grad))
    return net


def is_stored_in_bf16(net: nn.Module) -> bool:
    """Whether `store_in` was applied to `net`."""
    return any(isinstance(module, tuple(STORED.values())) for module in net.modules())


def stored_in_fp32(net: nn.Module) -> nn.Module:
    """Undo `store_in`, in place, except for the rounding of the weights; returns `net`."""
    return stock_layers(net).float()


def stock_layers(net: nn.Module) -> nn.Module:
    """Undo the change of classes by `store_in`, in place, and leave the weights as they are; returns `net`."""
    stock = {stored: kind for kind, stored in STORED.items()}
    for module in net.modules():
        module.__class__ = stock.get(type(module), type(module))
    return net
