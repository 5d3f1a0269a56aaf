"""Device and number format of the networks: the settings of a recipe, resolved for this machine."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import write_text_atomically

DEVICES = ("cpu", "cuda", "mps")
NOTE = "device.json"
"""File in a run's folder with the device and number format that it was started with."""


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
    """The devices of this machine, fastest first."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    return [name for name, here in (("cuda", cuda), ("mps", mps), ("cpu", True)) if here]


def has_native_bf16(device: str) -> bool:
    """Whether a device of this machine supports bfloat16 arithmetic natively, according to torch."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return _mps_multiplies() if device == "mps" else _cpu_multiplies()


def _cpu_multiplies() -> bool:
    """As reported by oneDNN; on x86 also by CPU instructions, because oneDNN reports support for mere conversion.

    The capability is the one that torch uses, which `ATEN_CPU_CAPABILITY=avx2` can limit.
    """
    # These functions are not public; if one is missing, native support is not assumed.
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
    """Tests a small convolution and a matrix product: old versions of macOS do not support the type."""
    try:
        x = torch.ones(1, 4, 8, 8, device="mps", dtype=torch.bfloat16)
        y = torch.nn.functional.conv2d(x, x[:, :, :3, :3]).flatten(1)
        return bool((y @ y.T).isfinite().all())
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        return False


def resolve(device: str = "auto", precision: str = "auto") -> Place:
    """Resolve `model.device` and `model.precision` of a recipe for this machine.

    `auto` is the fastest device, and bf16 if that device supports it natively. UsageError for an unavailable device.
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
    """Device and number format that the run in `folder` was started with; None if they were not recorded."""
    path = folder / NOTE
    if not path.is_file():
        return None
    try:
        return Place(**parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="delete it, and the run continues with the recipe's"
                         ) from None  # fmt: skip


def write_note(folder: Path, place: Place) -> None:
    """Record device and number format in a run's folder."""
    write_text_atomically(folder / NOTE, json.dumps(asdict(place)) + "\n")


def seconds_of(device: torch.device) -> float:
    """The clock, after the work that the device has been given so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Peak memory use of this process in bytes, on the accelerator or in main memory. On MPS: the current use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    # Kilobytes, but on macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
