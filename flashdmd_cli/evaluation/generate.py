"""Draws pictures: the student in few steps, and its teacher three ways, all from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flashdmd_cli.core.rollout import rollout
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Denoiser
from flashdmd_cli.families.family import Family
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.randomness import generator

Sampler = Literal["few_step", "stochastic", "ddim"]
"""`few_step`: the student on its grid. `stochastic`: the teacher with guidance, sampled as the student is.
`ddim`: the teacher with guidance and its deterministic sampler (DDIM, for flows Euler)."""


@dataclass(frozen=True)
class NoiseKey:
    """Names the noise of one picture. In a suite: the seed of the picture, and the suite's name with the prompt's id,
    so that the noise depends neither on the batch nor on the order, the process or the number of prompts."""

    seed: int
    index: int = 0
    purpose: str = "picture"


def picture_noise(shape: Sequence[int], seed: int, index: int, step: int = 0, purpose: str = "picture") -> Tensor:
    """Gaussian noise of one picture entering grid step `step`: a function of its arguments, whatever the batch."""
    return torch.randn(*shape, generator=generator(seed, index, step, purpose))


@torch.no_grad()
def generate(
    family: Family,
    net: Denoiser,
    captions: Sequence[str],
    seed: int,
    sampler: Sampler = "few_step",
    steps: int = 4,
    guidance: float = 1.0,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: str = "trailing",
    first_index: int = 0,
    keys: Sequence[NoiseKey] | None = None,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    """A picture for every caption, (N, 3, H, W) float32 on [-1, 1], on the CPU.

    Picture `i` starts from the noise of (seed, first_index + i), or of `keys[i]` where given, the same for every
    sampler, so that pictures side by side differ by the sampler alone. `guidance` 1 is none. `timesteps` replaces the
    few-step grid of `steps`; `spacing` is that of DDIM. `progress(done, N)` is called after each batch, `step(B)` after
    each step of the B pictures of one. Raises `NumericalError` on NaN.
    """
    if sampler == "few_step" and guidance != 1.0:
        raise ValueError("a few-step student has its guidance built in; sample it with guidance 1")
    grid: tuple[float, ...] = ()
    if sampler != "ddim":
        grid = tuple(timesteps) if timesteps is not None else family.grid(steps).timesteps
    keys = keys or [NoiseKey(seed, first_index + i) for i in range(len(captions))]
    pictures = []
    for start in range(0, len(captions), batch):
        texts = list(captions[start : start + batch])
        part = keys[start : start + len(texts)]
        condition = family.encode(texts)

        def denoise(x_t: Tensor, t: Tensor, condition: Conditioning = condition) -> Tensor:
            x0 = net.guided_x0(x_t, t, condition, guidance)
            if step is not None:
                step(len(x_t))
            return x0

        def noise(step: int, part: Sequence[NoiseKey] = part) -> Tensor:
            rows = [picture_noise(family.latent_shape, key.seed, key.index, step, key.purpose) for key in part]
            return torch.stack(rows).to(family.device)

        if sampler == "ddim":
            latents = family.solve(denoise, steps, noise(0), spacing)
        else:
            latents = rollout(denoise, family.schedule, grid, noise(0), noise)
        pictures.append(family.decode(latents).float().clamp(-1, 1).cpu())
        if not pictures[-1].isfinite().all():
            raise NumericalError(
                f"{sampler}: the pictures that the network draws are not finite",
                hint="its weights are no use: draw with an earlier checkpoint, or train with a lower learning rate",
            )
        if progress is not None:
            progress(start + len(texts), len(captions))
    return torch.cat(pictures)
