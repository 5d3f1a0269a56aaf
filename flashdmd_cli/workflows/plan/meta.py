"""Networks without data, on torch's meta device: counts operations, and the memory that would be allocated.

The meta device has neither autocast nor fused attention, so `Meter` implements both as they are on an accelerator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

T = TypeVar("T")
META = torch.device("meta")
LOW_PRECISION = {
    F.linear, F.conv2d, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm,
    torch.einsum,
}  # fmt: skip
"""Functions that CUDA's autocast computes in bf16; of its list, those that our networks call."""
FULL_PRECISION = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax}
"""Functions that CUDA's autocast computes in float32: these write outputs of 4 bytes."""


@dataclass(frozen=True)
class Cost:
    """What a part of a training step costs. Bytes are above those allocated when the part began."""

    flop: int
    """Multiplications and additions of matrix products, convolutions and attention."""
    kept: int
    """Bytes of activations still allocated at the end."""
    peak: int
    """Largest number of bytes of activations."""
    kept_weights: int
    """Bytes of 16-bit copies of weights still allocated at the end; they do not depend on the number of pictures."""
    peak_weights: int
    """Largest number of bytes of such copies."""


@dataclass
class Gauge:
    """Bytes allocated now, and at most since the last reset."""

    now: int = 0
    peak: int = 0

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


class _Counter(TorchDispatchMode):
    """Counts operations by the formulas of torch's `FlopCounterMode`, and follows the storages that they allocate until
    the last tensor on them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        self.activations, self.copies = Gauge(), Gauge()
        self._seen: set[int] = set()
        self.copying = False
        """Whether what is allocated is a copy of a weight."""

    def keep(self, tensor: Tensor, gauge: Gauge | None) -> None:
        """Add a storage to a gauge, or only remember it, so that views on it are not counted."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes() if gauge is not None else 0
        if gauge is not None:
            gauge.add(size)
        weakref.finalize(storage, self._free, key, size, gauge)

    def _free(self, key: int, size: int, gauge: Gauge | None) -> None:
        self._seen.discard(key)
        if gauge is not None:
            gauge.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        gauge = self.copies if self.copying else self.activations
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor) and each.is_meta:
                self.keep(each, gauge)
        return out


class _Accelerator(TorchFunctionMode):
    """Autocast and attention as on an accelerator."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter
        self.enabled = [False]
        """Of the autocast contexts entered now, the innermost last."""
        self.is_backward = False
        self._copies: dict[int, Tensor] = {}

    @contextmanager
    def autocast(self, device_type: str, dtype: Any = None, enabled: bool = True, **rest: Any) -> Iterator[None]:
        """In place of `torch.autocast`."""
        self.enabled.append(enabled)
        try:
            yield
        finally:
            self.enabled.pop()
            if len(self.enabled) == 1:
                self._copies.clear()

    def is_autocast_enabled(self, device_type: str | None = None) -> bool:
        """In place of the function of torch."""
        return self.enabled[-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        low = torch.bfloat16 if self.enabled[-1] else None
        if func is F.scaled_dot_product_attention:
            q, k, v = (self._cast(each, low) for each in args[:3])
            # The meta device would compute and store the matrix of all pairs.
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        if low is not None and (func in LOW_PRECISION or func in FULL_PRECISION):
            dtype = low if func in LOW_PRECISION else torch.float32
            args = tuple(self._cast(each, dtype) for each in args)
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, x: Any, dtype: torch.dtype | None) -> Any:
        if dtype is None or not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == dtype:
            return x
        if not isinstance(x, nn.Parameter):
            return x.to(dtype)
        # Autocast keeps its copies of trainable weights until its context ends; a recomputed block has its own.
        keeps = x.requires_grad and not self.is_backward
        if keeps and id(x) in self._copies:
            return self._copies[id(x)]
        self.counter.copying = True
        copy = x.to(dtype)
        self.counter.copying = False
        if keeps:
            self._copies[id(x)] = copy
        return copy


class Meter:
    """Runs functions on meta tensors and returns their cost, inside `running()`."""

    def __init__(self, nets: Iterable[nn.Module], precision: str) -> None:
        """`nets`: all networks; their weights are not counted, nor are gradients, which are freed at once.

        `precision` is that of forward passes.
        """
        self.precision = precision
        self.counter = _Counter()
        self.accelerator = _Accelerator(self.counter)
        self._nets = list(nets)

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Context in which to call `measure`."""
        tensors = {id(t): t for net in self._nets for t in (*net.parameters(), *net.buffers())}.values()
        hooks = []
        for tensor in tensors:
            self.counter.keep(tensor, None)
            if tensor.requires_grad:
                hooks.append(tensor.register_post_accumulate_grad_hook(_forget_gradient))
        try:
            with (
                patch("torch.autocast", self.accelerator.autocast),
                patch("torch.is_autocast_enabled", self.accelerator.is_autocast_enabled),
                # Functions that a mode can replace run without it, so recomputation would not see it.
                patch("torch.autograd.has_torch_function", lambda tensors: False),
                patch("torch.autograd.grad", self._recomputing(torch.autograd.grad)),
                patch("torch.Tensor.backward", self._recomputing(_backward)),
                self.accelerator,
            ):
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def measure(self, function: Callable[[], T]) -> tuple[T, Cost]:
        """The result of `function`, and its cost."""
        gauges = (self.counter.activations, self.counter.copies)
        before = [gauge.now for gauge in gauges]
        for gauge in gauges:
            gauge.peak = gauge.now
        flop = self.counter.flop
        with self.counter:
            result = function()
        (kept, kept_weights), (peak, peak_weights) = (
            [gauge.now - start for gauge, start in zip(gauges, before, strict=True)],
            [gauge.peak - start for gauge, start in zip(gauges, before, strict=True)],
        )
        return result, Cost(self.counter.flop - flop, kept, peak, kept_weights, peak_weights)

    def _recomputing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A backward pass, in which checkpointed blocks are recomputed under autocast, as they were computed."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.accelerator.is_backward = True
            try:
                with self.accelerator.autocast("meta", enabled=self.precision == "bf16"):
                    return function(*args, **kwargs)
            finally:
                self.accelerator.is_backward = False

        return run


def _backward(tensor: Tensor, gradient: Tensor | None = None) -> None:
    torch.autograd.backward(tensor, gradient)


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
