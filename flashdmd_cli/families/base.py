"""One denoising network and the roles that are views on it: with no, one or several of its low-rank adapters on.

A role with all weights of its own (full fine-tuning) is the plain view on a copy; a role that trains an adapter is a
view on a base that it may share with teacher, fake score and reference. Loops do not know which.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flashdmd_cli.core.attention import attention_kernel
from flashdmd_cli.core.schedules import x0_from_output
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Calls


class Base:
    """A stock denoising network (`diffusers`), frozen or trainable, with any number of adapters."""

    def __init__(self, calls: Calls, net: nn.Module) -> None:
        """`calls` runs the network: its family."""
        self.calls, self.net = calls, net
        self._layers: list[Any] = []
        self._entered: tuple[tuple[str, ...], Tensor | None] = ((), None)
        self._is_checkpointed = False

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def view(self, *adapters: str) -> View:
        """The network with these adapters on, all others off."""
        return View(self, adapters)

    def copy(self, trainable: bool = True) -> Base:
        """Another network with the same weights in float32 and no adapters, on the same device."""
        net = self.view().merged()
        net = copy.deepcopy(net) if net is self.net else net
        return self._another(net.float().eval().requires_grad_(trainable))

    def twin(self) -> Base:
        """Another tree of modules over the same tensors, without adapters; those put on it leave this one as it is."""
        tensors = {id(tensor): tensor for tensor in (*self.net.parameters(), *self.net.buffers())}
        net: Any = copy.deepcopy(self.net, tensors)
        if self._layers:
            net.unload_lora()
        return self._another(net)

    def _another(self, net: nn.Module) -> Base:
        other = Base(self.calls, net)
        return other.checkpointed() if self._is_checkpointed else other

    def to(self, device: torch.device | str) -> Base:
        """Itself, moved to a device."""
        self.net.to(device)
        return self

    def checkpointed(self) -> Base:
        """Itself, from now on with activations recomputed in the backward pass, which saves memory."""

        def run(function: Any, *args: Any) -> Any:
            adapters, x = self._entered
            # The role, and with it the adapters, may have changed by the time of the backward pass.
            contexts = lambda: (nullcontext(), self._enter(adapters, x))  # noqa: E731
            return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

        self.net.enable_gradient_checkpointing(run)  # type: ignore[operator]
        self._is_checkpointed = True
        return self

    # -- adapters -----------------------------------------------------------------------------------------------------

    def add_adapter(self, name: str, rank: int, alpha: float, below: Sequence[str] = ()) -> View:
        """A new adapter of `rank`, scaled by alpha / rank, on the family's target layers; the view that trains it on
        top of the adapters `below`, which stay as they are.

        It begins as the identity. Raises ValueError if there is one of this name already.
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
            # Adding one adapter freezes the others.
            parameter.requires_grad_(trains.get(key, f".{name}." in key and ".lora_" in key))
        self._layers = [module for module in self.net.modules() if isinstance(module, BaseTunerLayer)]
        self._switch(())
        return self.view(*below, name)

    def _switch(self, adapters: tuple[str, ...]) -> None:
        # The library's own switches also change what trains, and here several adapters do.
        for layer in self._layers:
            layer._active_adapter, layer._disable_adapters = list(adapters), not adapters

    @contextmanager
    def _enter(self, adapters: tuple[str, ...], x: Tensor | None) -> Iterator[None]:
        """Run the network with these adapters, and with the attention kernel that fits latents `x`."""
        before, self._entered = self._entered, (adapters, x)
        self._switch(adapters)
        try:
            with nullcontext() if x is None else attention_kernel(x):
                yield
        finally:
            self._entered = before
            self._switch(before[0])

    def enter(self, adapters: tuple[str, ...], x: Tensor) -> AbstractContextManager[None]:
        """For as long as the context lasts the network is that of one view."""
        return self._enter(adapters, x)

    def own_names(self, adapters: tuple[str, ...]) -> dict[str, str]:
        """Names in the network -> names in a state, of what belongs to the view with these adapters: the last one's
        weights, or without any the network's own. A state does not say how its adapter was called."""
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
    """One role's `Denoiser`: a base with these adapters on, of which the last is the role's own."""

    base: Base
    adapters: tuple[str, ...] = ()

    @property
    def parameters(self) -> list[nn.Parameter]:
        names = self.base.own_names(self.adapters)
        return [parameter for key, parameter in self.base.net.named_parameters() if key in names]

    def weights(self) -> dict[str, Tensor]:
        held, names = self.base.net.state_dict(), self.base.own_names(self.adapters)
        return {told: held[key] for key, told in names.items()}

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with self.base.enter(self.adapters, x_t):
            return self.base.calls.call(self.base.net, x_t, t, cond)

    def x0(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self._clean(self.output(x_t, t, cond), x_t, t)

    def guided_x0(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        """Both sides in one forward pass. On the network's answers, as stock pipelines do it (Ho & Salimans 2022)."""
        if guidance == 1.0:
            return self.x0(x_t, t, cond)
        both = Conditioning.cat([self.base.calls.null(cond), cond])
        null, told = self.output(torch.cat([x_t, x_t]), t.repeat(2), both).chunk(2)
        return self._clean(null + guidance * (told - null), x_t, t)

    def features(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        with self.base.enter(self.adapters, x_t):
            return self.base.calls.tap(self.base.net, x_t, t, cond)

    def _clean(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x0_from_output(self.base.calls.schedule, self.base.calls.prediction, output, x_t, t)

    def plain(self) -> View:
        """The plain view on a network without adapters, which answers as this one does."""
        return Base(self.base.calls, self.merged()).view() if self.base._layers else self.base.view()

    def merged(self) -> nn.Module:
        """A plain network that answers as this view does: the base itself where it has no adapters, else a copy."""
        if not self.base._layers:
            return self.base.net
        net: Any = copy.deepcopy(self.base.net)
        if self.adapters:
            net.fuse_lora(adapter_names=list(self.adapters))
        net.unload_lora()
        if self.base._is_checkpointed:
            # Its recomputation would switch this base, not the copy.
            net.disable_gradient_checkpointing()
        return net
