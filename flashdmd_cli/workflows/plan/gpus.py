"""Devices that a plan can be made for: memory and matrix speed by their data sheets, and what was measured on one.

Speeds are dense bf16 products. Which part of it a training step reaches was measured on an H200 only
(docs/log/2026-11-27-scale.md) and is assumed for all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashdmd_cli.runs.device import available_devices
from flashdmd_cli.runs.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """A device, for estimates."""

    name: str
    memory: float
    """Bytes."""
    tflops: float
    """TFLOP per second of large matrix products in bf16."""
    is_measured: bool = False
    """Whether `tflops` and the speed of training were measured on such a device."""


MIB = 2**20
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 143771 * MIB, 788, is_measured=True),
        Gpu("h100", 81559 * MIB, 788),  # the arithmetic units of an H200
        Gpu("a100", 81920 * MIB, 312),
        Gpu("a100-40gb", 40960 * MIB, 312),
        Gpu("l40s", 46068 * MIB, 362),
        Gpu("5090", 32607 * MIB, 209),
        Gpu("4090", 24564 * MIB, 165),
        Gpu("3090", 24576 * MIB, 71),
    )
}
"""By name on the command line; memory as the driver reports it."""

SHARE = 0.3
"""Of `tflops`: reached by the fastest part measured, the rollout of full fine-tuning at micro-batch 4 (31 %)."""

LAUNCH_SECONDS = {
    ("lora", False): (0.17, 0.24),
    ("lora", True): (0.17, 1.29),
    ("full", False): (0.087, 0.17),
    ("full", True): (0.09, 0.39),
}
"""(`model.form`, `model.checkpointing`) -> seconds of one forward and one backward pass of the denoiser however few
pictures it has: the processor needs them to start the kernels. Measured beside an H200."""

RESERVE = 0.8e9
"""Bytes of a device that are not for tensors: the CUDA context. Assumed."""
FRAGMENTATION = 1.04
"""Factor from bytes in tensors to bytes that the allocator takes. Assumed."""


def gpu_named(name: str | None) -> Gpu | None:
    """A device by name; None: the CUDA device of this machine, or None if there is none. UsageError for others."""
    if name is not None:
        try:
            return GPUS[name.lower()]
        except KeyError:
            raise UsageError(f"--gpu {name}: not known", hint=f"one of {', '.join(GPUS)}") from None
    if "cuda" not in available_devices():
        return None
    properties = torch.cuda.get_device_properties(0)
    like = next((gpu for key, gpu in GPUS.items() if key in properties.name.lower().replace(" ", "")), None)
    speed = like.tflops if like is not None else 100.0
    return Gpu(properties.name, properties.total_memory, speed, like is not None and like.is_measured)
