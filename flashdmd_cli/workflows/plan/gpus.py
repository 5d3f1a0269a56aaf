"""Devices that a plan can be made for: memory and matrix speed by their data sheets, and what was measured on one.

Which share of its matrix speed training reaches was measured on an H200 only (docs/log/2026-11-27-scale.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashdmd_cli.runs.nearest import unknown


@dataclass(frozen=True)
class Gpu:
    """A device, for estimates."""

    name: str
    memory: float
    """Bytes."""
    tflops: float
    """TFLOP per second of large matrix products in bf16, by data sheet or measurement."""
    share: float
    """Of `tflops` that training reaches where starting the kernels does not limit it."""
    is_measured: bool = False
    """Whether `tflops` and `share` were measured on such a device; otherwise they are assumed."""


MIB = 2**20
SHARE = 0.2
"""Measured on an H200 with 4 and 8 pictures in a forward pass, recomputation included: 19 to 21 %."""
ASSUMED = 0.35
"""Assumed for slower devices, which are easier to keep busy."""
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 143771 * MIB, 788, SHARE, is_measured=True),
        Gpu("h100", 81559 * MIB, 788, SHARE),  # the arithmetic units of an H200
        Gpu("a100", 81920 * MIB, 312, ASSUMED),
        Gpu("a100-40gb", 40960 * MIB, 312, ASSUMED),
        Gpu("l40s", 46068 * MIB, 362, ASSUMED),
        Gpu("5090", 32607 * MIB, 209, ASSUMED),
        Gpu("4090", 24564 * MIB, 165, ASSUMED),
        Gpu("3090", 24576 * MIB, 71, ASSUMED),
    )
}
"""By name on the command line; memory as the driver reports it."""
UNKNOWN_TFLOPS = 100.0
"""Assumed for a device that is not in the table."""

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


def needed(tensors: float) -> float:
    """Bytes of memory that a device must have for `tensors` bytes in tensors."""
    return tensors * FRAGMENTATION + RESERVE


def gpu_named(name: str | None) -> Gpu | None:
    """A device by name; None: the CUDA device of this machine, or None if there is none. UsageError for others."""
    if name is not None:
        try:
            return GPUS[name.lower()]
        except KeyError:
            raise unknown("--gpu", name, GPUS) from None
    import torch

    from flashdmd_cli.runs.device import available_devices

    if "cuda" not in available_devices():
        return None
    properties = torch.cuda.get_device_properties(0)
    # The longest name first: "a100-40gb" is none of an "a100".
    known = sorted(GPUS.values(), key=lambda gpu: -len(gpu.name))
    like = next((gpu for gpu in known if gpu.name in properties.name.lower()), None)
    if like is None:
        return Gpu(properties.name, properties.total_memory, UNKNOWN_TFLOPS, ASSUMED)
    return replace(like, name=properties.name, memory=properties.total_memory)
