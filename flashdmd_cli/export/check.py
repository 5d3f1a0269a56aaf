"""Comparison of an export with the student: both draw a picture from the same noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.core.rollout import rollout
from flashdmd_cli.export.job import Job

MAX_SIDE = 64
"""Side of the latents above which smaller pictures are compared, of `SMALL_SIDE`, which takes a 16th of the time."""
SMALL_SIDE = 32
SEED = 0


@dataclass(frozen=True)
class Difference:
    """The difference between the pictures of an export and of the student, whose pixels are on [0, 1]."""

    largest: float
    mean: float


Step = Callable[[int], None]
"""Is called with the number of finished sampling steps."""


def student_picture(job: Job, prompt: str, step: Step = lambda done: None) -> Tensor:
    """The picture (1, 3, H, W) on [0, 1] that `sample` would draw from the noise of `noises`."""
    family: Any = job.facts.module.load(job.source, "fp32", job.check_dtype)
    family.release_encoders([prompt])  # a third of the memory of SDXL
    cond = family.encode([prompt])
    first, generator = noises(family.latent_shape)
    net = family.teacher  # in `job.source`, the student's denoiser takes its place
    done = count(1)

    def x0(x: Tensor, t: Tensor) -> Tensor:
        found = net.x0(x, t, cond)
        step(next(done))
        return found

    step(0)
    with torch.no_grad():
        latents = rollout(
            x0,
            family.schedule,
            family.grid(job.steps).timesteps,
            first,
            lambda _: torch.randn(first.shape, generator=generator),
        )
        picture: Tensor = family.decode(latents).clamp(-1, 1) / 2 + 0.5
    return picture


def stock_picture(pipeline: Any, job: Job, prompt: str, step: Step = lambda done: None) -> Tensor:
    """The picture (1, 3, H, W) on [0, 1] that a stock pipeline draws from the same noise."""
    size = job.facts.module.dimensions(job.source.folder)
    first, generator = noises(size.latents)
    side = first.shape[-1] * size.resolution // size.latents[-1]
    more: dict[str, Any] = {}
    if side != size.resolution and "original_size" in inspect.signature(pipeline.__call__).parameters:
        # SDXL takes the size of the picture as an input, which `sample` always gives as the model's own.
        more = {"original_size": (size.resolution,) * 2, "target_size": (size.resolution,) * 2}

    def ended(_: Any, index: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        step(index + 1)
        return values

    step(0)
    # SD3's pipeline passes no generator to its scheduler, which then draws from the global one.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        picture: Tensor = pipeline(
            prompt, num_inference_steps=job.steps, guidance_scale=1.0, latents=first, height=side, width=side,
            output_type="pt", callback_on_step_end=ended, **more,
        ).images  # fmt: skip
    return picture.float().cpu()


def noises(latent_shape: tuple[int, ...]) -> tuple[Tensor, torch.Generator]:
    """The first noise (1, C, h, w), and the generator of the noise of all later steps."""
    channels, *sides = latent_shape
    sides = [SMALL_SIDE if side > MAX_SIDE else side for side in sides]
    first = torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(SEED))
    return first, torch.Generator().manual_seed(SEED + 1)


def compare(picture: Tensor, other: Tensor) -> Difference:
    """The difference of two pictures; a pixel that is not finite counts as an infinite difference."""
    error = (picture - other).abs().nan_to_num(nan=float("inf"))
    return Difference(error.max().item(), error.mean().item())
