"""Speed, memory and arithmetic of training iterations, at true size with random weights, so without any download.

What is measured is `training.distill.iteration` itself, on synthetic pictures and cached text embeddings.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from flashdmd_cli.data.shards import Batch
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.family import Family
from flashdmd_cli.families.registry import family_named, has_random_weights
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.runs.device import Place, peak_memory, resolve
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.bench_parts import Part, by_part, wait

MATRIX = 8192
"""Side of the square matrices whose product measures a device's ceiling; a CPU takes an eighth."""


@dataclass(frozen=True)
class Bench:
    """What an iteration costs on one device; the mean over whole cycles of `ttur` iterations."""

    recipe: str
    family: str
    device: str
    """Name of the processor."""
    precision: str
    parameters: int
    """Of the denoiser."""
    trainable: int
    """Parameters that the optimizers of all roles update."""
    resolution: int
    batch: int
    micro_batch: int
    seconds: float
    """Of an iteration."""
    samples_per_second: float
    tflop: float
    """Of an iteration: multiplications and additions of matrix products, convolutions and attention."""
    tflops: float
    """TFLOP per second reached."""
    ceiling_tflops: float
    """The same for a large matrix product in the same number format on the same device."""
    utilisation: float
    """`tflops / ceiling_tflops`."""
    peak_gb: float
    """Peak memory of the iterations: allocated on an accelerator, resident in the process on a CPU."""
    load_gb: float
    """Memory after loading, before the first iteration."""
    parts: dict[str, Part] = field(default_factory=dict)
    """By name; `backward passes` is what remains."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class RandomData:
    """Pictures and text embeddings of the right sizes, drawn once; the implementation of `training.loop.Data`."""

    def __init__(self, family: Family, micro_batch: int) -> None:
        side, text = family.resolution, family_named(family.name).module.random_text(family, micro_batch)
        self.pixels = torch.rand(micro_batch, 3, side, side, device=family.device) * 2 - 1
        self.text = {name: value.to(family.device) for name, value in text.items()}
        self.latents = torch.randn(micro_batch, *family.latent_shape, device=family.device)

    def batch(self, positions: range, seed: int = 0) -> Batch:
        """The same rows for any position."""
        n = len(positions)
        text = {name: value[:n] for name, value in self.text.items()}
        return Batch(self.pixels[:n], ["a picture"] * n, self.latents[:n], text)


class AuthorsFamily(SDXLFamily):
    """SDXL in the number formats of DMD2's own training script: autocast to bf16 only where gradients are computed and
    for the teacher; sampling, and the fake score inside the distribution-matching loss, in float32 (with TF32)."""

    def call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """As in `SDXLFamily`."""
        self.precision = "bf16" if torch.is_grad_enabled() or net is self.base.net else "fp32"
        return super().call(net, x_t, t, cond)


def bench(
    recipe: Recipe,
    resolution: int = 1024,
    cycles: int = 3,
    *,
    small: bool = False,
    authors: bool = False,
    tflop_per_sample: float | None = None,
    reporter: Reporter | None = None,
) -> Bench:
    """Measure iterations of `recipe` (stage 1) on its family's teacher of true size, or a `small` one, with random
    weights.

    `cycles` of `recipe.ttur` iterations are timed, after one to warm up. `authors` measures in the number
    formats of DMD2's script. Counting operations takes several times as long as running them; a known
    `tflop_per_sample` avoids it. Raises `UsageError` for an alignment, and for a family without random weights.
    """
    if recipe.align is not None or not has_random_weights(recipe.family):
        raise UsageError(f"--recipe {recipe.name}: only distillations of SDXL and SD3 can be measured")
    if authors and recipe.family != SDXLFamily.name:
        raise UsageError(f"--recipe {recipe.name}: DMD2's number formats are known for SDXL only")
    reporter, place = reporter or SilentReporter(), resolve(recipe.model.device, recipe.model.precision)
    device = torch.device(place.device)
    _reset_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        reporter.phase(f"{recipe.name}: making the networks ({place.device}, {place.precision})")
        make = family_named(recipe.family).module.random_family
        family = make(resolution, place.precision, recipe.model.storage(place.precision), device, small)
        if authors:
            family.__class__ = AuthorsFamily
        recipe = _with_sam(recipe, Path(folder), small, resolution)
        state = State.new(recipe, family)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    data, ttur = RandomData(family, recipe.train.micro_batch), recipe.ttur
    load = _allocated(device)

    def run(number: int) -> float:
        began = time.perf_counter()
        iteration(recipe, objective, state, data, number)
        state.follow_average(recipe)
        wait(device)
        return time.perf_counter() - began

    with _tf32(authors):
        reporter.phase(f"{recipe.name}: warming up")
        for number in range(ttur):
            run(number)
        # Rollouts of different lengths are drawn by the number of the iteration: all that follows runs the same ones.
        numbers = range(ttur, ttur * (1 + cycles))
        reporter.phase(f"{recipe.name}: timing {len(numbers)} iterations")
        _reset_peak(device)
        seconds = sum(run(number) for number in numbers) / len(numbers)
        peak = peak_memory(device) / 1e9
        reporter.phase(f"{recipe.name}: counting")
        parts, tflop, whole = by_part(objective, state, numbers, run, tflop_per_sample is None)
    tflop = tflop if tflop_per_sample is None else tflop_per_sample * recipe.train.batch
    counted = tflop - sum(part.tflop for part in parts.values())
    parts["backward passes"] = Part(
        max(0.0, whole - sum(p.seconds for p in parts.values())), 0.0 if tflop_per_sample else counted
    )
    ceiling = matrix_tflops(place)
    return Bench(
        recipe=recipe.name,
        family=recipe.family,
        device=device_name(device),
        precision="as DMD2" if authors else place.precision,
        parameters=sum(p.numel() for key, p in family.base.net.named_parameters() if ".lora_" not in key),
        trainable=sum(p.numel() for role in state.roles for p in role.parameters),
        resolution=resolution,
        batch=recipe.train.batch,
        micro_batch=recipe.train.micro_batch,
        seconds=seconds,
        samples_per_second=recipe.train.batch / seconds,
        tflop=tflop,
        tflops=tflop / seconds,
        ceiling_tflops=ceiling,
        utilisation=tflop / seconds / ceiling,
        peak_gb=peak,
        load_gb=load / 1e9,
        parts=parts,
    )


def _with_sam(recipe: Recipe, folder: Path, small: bool, resolution: int) -> Recipe:
    """`recipe` with an untrained SAM of its size in `folder`, or the embedded one, and a crop that fits into
    pictures of `resolution`; unchanged without a pixel GAN."""
    if recipe.gan.kind != "pixel":
        return recipe
    if small:
        from flashdmd_cli.shapes.assets import asset

        path = asset("shapes-sam")
    else:
        path = folder / "sam.pth"
        torch.save(sam_model_registry[recipe.gan.sam]().state_dict(), path)
    return recipe.model_copy(
        update={"gan": recipe.gan.model_copy(update={"sam": str(path), "crop_px": min(recipe.gan.crop_px, resolution)})}
    )


def matrix_tflops(place: Place) -> float:
    """TFLOP per second of a large square matrix product of random numbers on a device, in its number format; best of
    three."""
    device = torch.device(place.device)
    side = MATRIX // 8 if device.type == "cpu" else MATRIX
    dtype = torch.bfloat16 if place.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        wait(device)
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(device)
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - began) / 1e12)
    return best


def device_name(device: torch.device) -> str:
    """The name of the processor, as its driver or the system reports it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or device.type


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_memory(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
