"""Frozen weights stored in 16 bits, half the memory of float32, while adapters and losses stay in float32.

Under autocast nothing is cast in a forward pass any more, since the weights have its format already. Without autocast,
on processors without native bfloat16, each layer casts its weights to the input's format when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class _Int8Linear(nn.Linear):
    """Weights (out, in) as whole numbers from -127 to 127, times `scale` (out, 1) in bfloat16: one for each output.

    A quarter of the memory of float32, half that of bfloat16.
    """

    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        y: Tensor = _Int8Product.apply(x, self.weight, self.scale, self.bias)
        return y


class _Int8Product(torch.autograd.Function):
    """`F.linear` with an 8-bit weight. Only the 8 bits are kept for the backward pass, which expands them again; a
    product with an expanded weight would keep that, which is as large as a network in 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, weight * scale.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        return gradient @ (weight * scale.to(gradient.dtype)), None, None, None


def read_as(weights: str) -> torch.dtype:
    """The number format in which a network is read that `store` will convert to the format `weights`."""
    return torch.bfloat16 if weights == "int8" else DTYPES[weights]


def store(net: nn.Module, weights: str, targets: Sequence[str]) -> nn.Module:
    """Convert the frozen weights of `net` to the format `weights` (fp32, bf16, fp16 or int8), in place; returns it.

    int8 is for the linear layers named in `targets`, which have nearly all weights of a transformer; the others are
    stored in bfloat16. Relative to the largest weight of the same output, a weight is off by at most 1/250 from the
    rounding to 8 bits, and by 1/115 with the rounding to bfloat16 before it and after it, in products under autocast.
    """
    if weights != "fp32":
        store_in(net, read_as(weights))
    if weights == "int8":
        for name, module in net.named_modules():
            if type(module) is _Linear and f".{name}".endswith(tuple(f".{target}" for target in targets)):
                _store_in_int8(module)
    return net


@torch.no_grad()
def _store_in_int8(layer: nn.Linear) -> None:
    weight = layer.weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.bfloat16).tiny)
    # Rounded before it is used, so that its rounding adds no error, and upwards, so that no number is above 127.
    scale = (largest / 127 * (1 + 2**-8)).to(torch.bfloat16)
    layer.register_buffer("scale", scale, persistent=False)
    numbers = (weight / scale.float()).round().clamp(-127, 127).to(torch.int8)
    layer.weight = nn.Parameter(numbers, requires_grad=False)
    layer.__class__ = _Int8Linear


def full_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer in float32, whatever the format that it is stored in."""
    weight: Any = layer.weight
    return weight * layer.scale.float() if isinstance(layer, _Int8Linear) else weight.float()


def store_in(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of `net` to a format of 16 bits, in place, so that it takes inputs of any format; returns it.

    Parameters of other layers are stored in float32: the RMS norms of SD3.5 would return the format of their weights,
    which attention does not combine with another one.
    """
    for module in net.modules():
        if type(module) in STORED:
            module.to(dtype)
            module.__class__ = STORED[type(module)]
        elif type(module) not in STORED.values():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    return net


def is_stored(net: nn.Module) -> bool:
    """Whether `store_in` was applied to `net`."""
    return any(isinstance(module, tuple(STORED.values())) for module in net.modules())


def stored_in_fp32(net: nn.Module) -> nn.Module:
    """Undo `store`, in place, except for the rounding of the weights; returns `net`."""
    return stock_layers(net).float()


def stock_layers(net: nn.Module) -> nn.Module:
    """Undo the change of classes by `store`, in place; returns `net`. 8-bit weights become float32, and the others are
    left as they are."""
    stock = {stored: kind for kind, stored in STORED.items()} | {_Int8Linear: nn.Linear}
    for module in net.modules():
        if isinstance(module, _Int8Linear):
            if not module.weight.is_floating_point():
                module.weight = nn.Parameter(full_weight(module), requires_grad=False)
            del module.scale
        module.__class__ = stock.get(type(module), type(module))
    return net
