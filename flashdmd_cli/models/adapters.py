"""Low-rank adapters on a UNet: put on, list what trains, merge into a plain UNet."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.models import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
"""Every linear layer (or 1x1 convolution) of the transformer blocks."""


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: int) -> UNet2DConditionModel:
    """Freeze `unet` and put a trainable adapter of `rank`, scaled by alpha / rank, on its transformers, in place.

    The adapter starts as the identity, so the network answers as before. Raises ValueError if there is one already.
    """
    if getattr(unet, "peft_config", None):
        raise ValueError("the network has an adapter already")
    unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LORA_TARGETS), init_lora_weights=True)
    unet.add_adapter(config)
    return unet


def trainable_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in a fixed order: those of the adapter, or all of a network without one."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def merge_lora(net: UNet2DConditionModel) -> UNet2DConditionModel:
    """Add the adapter of `net`, if any, into its weights, in place; a plain network is left."""
    if getattr(net, "peft_config", None):
        net.fuse_lora()
        net.unload_lora()
    return net


class Reference:
    """The network that a student was before its training began, frozen.

    With adapters it is the student itself with them switched off, which costs no memory; else a copy.
    """

    def __init__(self, student: nn.Module) -> None:
        """Take `student` as it is before its first update (an adapter that was just put on answers as if absent)."""
        self.student = student
        adapted = bool(getattr(student, "peft_config", None))
        self.copy = None if adapted else copy.deepcopy(student).requires_grad_(False)

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The reference for as long as the context lasts; the student must not be run as itself meanwhile."""
        if self.copy is not None:
            yield self.copy
            return
        self.student.disable_adapters()  # type: ignore[operator]
        try:
            yield self.student
        finally:
            self.student.enable_adapters()  # type: ignore[operator]
