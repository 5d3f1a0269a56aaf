"""Where networks run, and in which number format: what a recipe asks for, resolved against this machine."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import write_text_atomically

DEVICES = ("cpu", "cuda", "mps")
NOTE = "device.json"
"""File of a run's folder that says where and in which format it began."""


@dataclass(frozen=True)
class Place:
    """A device of this machine and the number format of forward passes on it."""

    device: str = "cpu"
    """`cpu`, `cuda` or `mps`."""
    precision: str = "fp32"
    """`fp32` or `bf16`; weights and losses are fp32 either way."""

    def __str__(self) -> str:
        """For example `running on cpu (2 threads) in fp32: no native bf16 here`."""
        where = f"cpu ({torch.get_num_threads()} threads)" if self.device == "cpu" else self.device
        native = has_native_bf16(self.device)
        if self.precision == "fp32":
            why = "" if native else ": no native bf16 here"
        else:
            why = "" if native else ", which is emulated here and slow (model.precision=auto avoids it)"
        return f"running on {where} in {self.precision}{why}"


def available_devices() -> list[str]:
    """The devices of this machine, the fastest first."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    return [name for name, here in (("cuda", cuda), ("mps", mps), ("cpu", True)) if here]


def has_native_bf16(device: str) -> bool:
    """Whether a device of this machine multiplies in bfloat16 itself, by what torch says of it."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return _mps_multiplies() if device == "mps" else _cpu_multiplies()


def _cpu_multiplies() -> bool:
    """oneDNN's own answer, and on x86 the instructions too: there it says yes where it would only convert.

    The capability is what torch uses, not what the processor has: `ATEN_CPU_CAPABILITY=avx2` holds it down.
    """
    # None of these is public; where one is missing, nothing is known to be native.
    try:
        onednn = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX"):
        return onednn and capability != "NO AVX"
    queries = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return onednn and capability.startswith("AVX512") and any(query is not None and query() for query in queries)


def _mps_multiplies() -> bool:
    """Tried with a small convolution and a product: older macOS lacks the type."""
    try:
        x = torch.ones(1, 4, 8, 8, device="mps", dtype=torch.bfloat16)
        y = torch.nn.functional.conv2d(x, x[:, :, :3, :3]).flatten(1)
        return bool((y @ y.T).isfinite().all())
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        return False


def resolve(device: str = "auto", precision: str = "auto") -> Place:
    """What `model.device` and `model.precision` of a recipe mean on this machine.

    `auto` is the fastest device here, and bf16 where that device has it natively. UsageError for a device that is not
    here.
    """
    here = available_devices()
    if device != "auto" and device not in here:
        known = f"{device} is not available here" if device in DEVICES else "no such device"
        raise UsageError(f"--device {device}: {known}", hint=f"one of auto, {', '.join(here)}")
    device = here[0] if device == "auto" else device
    if precision == "auto":
        precision = "bf16" if has_native_bf16(device) else "fp32"
    return Place(device, precision)


def read_note(folder: Path) -> Place | None:
    """Where the run in `folder` began; None when it does not say."""
    path = folder / NOTE
    if not path.is_file():
        return None
    try:
        return Place(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="delete it, and the run goes on as the recipe says"
                         ) from None  # fmt: skip


def write_note(folder: Path, place: Place) -> None:
    """Remember in a run's folder where it began."""
    write_text_atomically(folder / NOTE, json.dumps(asdict(place)) + "\n")


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had in use at most: of the accelerator's memory, or of main memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    # Kilobytes, but on macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
