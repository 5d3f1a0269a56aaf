"""A denoising network (`Base`) and the roles that use it (`View`), each with its own set of active LoRA adapters.

With full fine-tuning, a role is a view without adapters on its own copy of the network. With adapters, several roles
(teacher, student, fake score, reference) are views on one shared network. Training loops do not distinguish the two.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flashdmd_cli.core.attention import attention_kernel
from flashdmd_cli.core.schedules import per_sample, x0_from_output
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Calls
from flashdmd_cli.families.sharding import is_sharded, shard_, whole_network
from flashdmd_cli.families.storage import full_weight, stock_layers, stored_in_fp32


class _AdaptedLinear(LoraLinear):
    """peft's layer with the same result from fewer calls: with small batches on a fast GPU, the processor's time to
    launch them decides, and peft's checks, dropout and modules double it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.base_layer(x)
        for name in self._active_adapter:
            if name in self.lora_A:
                hidden = F.linear(x, self.lora_A[name].weight)
                out = out + F.linear(hidden, self.lora_B[name].weight) * self.scaling[name]
        return out


class Base:
    """A stock denoising network (`diffusers`), frozen or trainable, with any number of adapters."""

    def __init__(self, calls: Calls, net: nn.Module) -> None:
        """`calls` is the family of the network; it runs forward passes."""
        self.calls, self.net = calls, net
        self._layers: list[Any] = []
        self._active: list[str] = []
        """The active adapters: one list that all adapted layers share, so that changing it costs the same for any
        number of layers (recomputation changes it twice for every block)."""
        self._entered: tuple[tuple[str, ...], Tensor | None] = ((), None)
        self._is_checkpointed = False

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def view(self, *adapters: str) -> View:
        """The network with only these adapters active."""
        return View(self, adapters)

    def copy(self, trainable: bool = True) -> Base:
        """A deep copy with float32 weights and without adapters, on the same device."""
        net = self.view().merged()
        net = copy.deepcopy(net) if net is self.net else net
        return self._another(stored_in_fp32(net).eval().requires_grad_(trainable))

    def twin(self) -> Base:
        """A second module tree on the same tensors, without adapters; adapters added to it do not affect this one."""
        tensors = {id(tensor): tensor for tensor in (*self.net.parameters(), *self.net.buffers())}
        net: Any = copy.deepcopy(self.net, tensors)
        if self._layers:
            net.unload_lora()
        return self._another(net)

    def _another(self, net: nn.Module) -> Base:
        other = Base(self.calls, net)
        return other.checkpointed() if self._is_checkpointed else other

    def to(self, device: torch.device | str) -> Base:
        """Move the network to a device; returns itself."""
        self.net.to(device)
        return self

    def checkpointed(self) -> Base:
        """Enable activation checkpointing, which saves memory; returns itself."""

        def run(function: Any, *args: Any) -> Any:
            adapters, x = self._entered
            # Other adapters may be active in the backward pass, so recomputation activates those of the forward pass.
            contexts = lambda: (nullcontext(), self.enter(adapters, x))  # noqa: E731
            # Networks stay in eval mode, without dropout, so that the states of random generators need not be kept.
            return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)

        assert not self.net.training
        self.net.enable_gradient_checkpointing(run)  # type: ignore[operator]
        self._is_checkpointed = True
        return self

    def compiled(self) -> Base:
        """Compile the network's transformer blocks, each on its own so that equal ones share code; returns itself."""
        # Each role, with and without gradients, is another graph of the same block.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for module in self.net.modules():
            if type(module).__name__ in self.calls.compiled_blocks:
                module.compile()
        return self

    def sharded(self) -> Base:
        """Shard the network over all processes, in place (see `families.sharding`); returns itself.

        Then it can be copied no more, and every forward pass is a collective call.
        """
        if not self.is_sharded:
            shard_(self.net)
        return self

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.net)

    # -- adapters -----------------------------------------------------------------------------------------------------

    def add_adapter(self, name: str, rank: int, alpha: float, below: Sequence[str] = ()) -> View:
        """Add an adapter of `rank`, scaled by alpha / rank, to the family's target layers.

        Returns the view that trains it on top of the frozen adapters `below`. The new adapter does not change the
        output until it is trained. Raises ValueError if `name` exists already.
        """
        if name in (getattr(self.net, "peft_config", None) or {}):
            raise ValueError(f"the network has an adapter {name} already")
        trains = {key: p.requires_grad for key, p in self.net.named_parameters() if ".lora_" in key}
        targets = list(self.calls.adapter_targets)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            self.net.add_adapter(config, adapter_name=name)  # type: ignore[operator]
        for key, parameter in self.net.named_parameters():
            # peft freezes all other adapters when it adds one; undo that.
            parameter.requires_grad_(trains.get(key, f".{name}." in key and ".lora_" in key))
            if ".lora_" in key:  # peft creates them in the format of the layer's weights
                parameter.data = parameter.data.float()
        self._layers = [module for module in self.net.modules() if isinstance(module, BaseTunerLayer)]
        for layer in self._layers:
            # peft would cast inputs to the adapter's float32 first, and autocast back: two copies of every activation.
            layer.cast_input_dtype_enabled = False
            # peft's own methods for this also set requires_grad, but here several adapters train at once.
            layer._active_adapter, layer._disable_adapters = self._active, False
            if type(layer) is LoraLinear:
                layer.__class__ = _AdaptedLinear
        return self.view(*below, name)

    @contextmanager
    def enter(self, adapters: tuple[str, ...], x: Tensor | None) -> Iterator[None]:
        """Context with these adapters active, and with the attention kernel for latents `x`."""
        before, self._entered = self._entered, (adapters, x)
        self._active[:] = adapters
        try:
            with nullcontext() if x is None else attention_kernel(x):
                yield
        finally:
            self._entered = before
            self._active[:] = before[0]

    def own_names(self, adapters: tuple[str, ...]) -> dict[str, str]:
        """Network name -> state name of each tensor that a view with these adapters owns: the weights of the last
        adapter, or of the network if there is none. Names in a state do not contain the adapter's name."""
        if not adapters:
            return {key: key.replace(".base_layer.", ".") for key in self.net.state_dict() if ".lora_" not in key}
        marks = [f".lora_{side}.{adapters[-1]}." for side in "AB"]
        return {
            key: key.replace(mark, mark.replace(f".{adapters[-1]}.", "."))
            for key in self.net.state_dict()
            for mark in marks
            if mark in key
        }


@dataclass(frozen=True)
class View:
    """The `Denoiser` of one role: a base with these adapters active, of which the last belongs to the role."""

    base: Base
    adapters: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        # Looked up once: an average asks for them in every iteration, and they stay the same objects.
        names = self.base.own_names(self.adapters)
        return [parameter for key, parameter in self.base.net.named_parameters() if key in names]

    def weights(self) -> dict[str, Tensor]:
        tensors, names = self.base.net.state_dict(), self.base.own_names(self.adapters)
        return {state_name: tensors[key] for key, state_name in names.items()}

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with self.base.enter(self.adapters, x_t):
            return self.base.calls.call(self.base.net, x_t, t, cond)

    def x0(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self._clean(self.output(x_t, t, cond), x_t, t)

    def guided_x0(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float | Tensor) -> Tensor:
        """x0 with guidance `u + w (c - u)`, one w or (B,) (Ho & Salimans 2022), in one forward pass."""
        if isinstance(guidance, float | int) and guidance == 1.0:
            return self.x0(x_t, t, cond)
        weight = per_sample(guidance, x_t) if isinstance(guidance, Tensor) else guidance
        both = Conditioning.cat([self.base.calls.null(cond), cond])
        uncond_output, cond_output = self.output(torch.cat([x_t, x_t]), t.repeat(2), both).chunk(2)
        return self._clean(uncond_output + weight * (cond_output - uncond_output), x_t, t)

    def features(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        with self.base.enter(self.adapters, x_t):
            return self.base.calls.tap(self.base.net, x_t, t, cond)

    def _clean(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x0_from_output(self.base.calls.schedule, self.base.calls.prediction, output, x_t, t)

    def low_rank(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer name -> matrices (down (r, inputs, ...), up (outputs, r, ...)) whose product up @ down is the change of
        its weight by this view's adapters: those of one adapter as they are, those of several one below the other. The
        adapters' scale is part of `up`. Empty without adapters."""
        factors = {}
        for name, layer in self.base.net.named_modules():
            if isinstance(layer, BaseTunerLayer) and (own := [key for key in self.adapters if key in layer.lora_A]):
                down = torch.cat([layer.lora_A[key].weight.detach() for key in own])
                up = torch.cat([layer.lora_B[key].weight.detach() * layer.scaling[key] for key in own], dim=1)
                factors[name] = (down, up)
        return factors

    def plain(self) -> View:
        """The plain view on a network without adapters, which answers as this one does."""
        return Base(self.base.calls, self.merged()).view() if self.base._layers else self.base.view()

    def merged(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network with this view's adapters merged into its weights: a copy in `dtype`, or the base itself if it
        has no adapters. The sums are computed in float32. Of a sharded network, the first process gets a whole copy."""
        if not self.base._layers:
            return whole_network(self.base.net) if self.base.is_sharded else self.base.net
        # Tensor by tensor: a copy in float32 that is converted later would not fit into memory with a large network.
        copies: dict[int, Any] = {}
        for layer in self.base._layers:
            delta = sum(layer.get_delta_weight(name) for name in self.adapters if name in layer.lora_A)
            stored = layer.get_base_layer()
            copies[id(stored.weight)] = _frozen((full_weight(stored) + delta).to(dtype))
        for key, tensor in (*self.base.net.named_parameters(), *self.base.net.named_buffers()):
            if ".lora_" in key:
                copies[id(tensor)] = tensor  # not copied, because it is removed
            elif id(tensor) not in copies:
                converted = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
                copies[id(tensor)] = _frozen(converted) if isinstance(tensor, nn.Parameter) else converted
        net: Any = stock_layers(copy.deepcopy(self.base.net, copies))
        net.unload_lora()
        if self.base._is_checkpointed:
            # Its recomputation would switch this base, not the copy.
            net.disable_gradient_checkpointing()
        return net


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
