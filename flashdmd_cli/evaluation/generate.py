"""Draws pictures: the student in few steps, and its teacher three ways, all from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from flashdmd_cli.core.rollout import at, rollout
from flashdmd_cli.models.family import Conditioning, Family
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.randomness import generator

Sampler = Literal["few_step", "stochastic", "ddim"]
"""`few_step`: the student on its grid. `stochastic`: the teacher with guidance, sampled as the student is.
`ddim`: the teacher with guidance and the deterministic DDIM sampler."""


def picture_noise(shape: Sequence[int], seed: int, index: int, step: int = 0) -> Tensor:
    """Gaussian noise of one picture entering grid step `step`: a function of its arguments, whatever the batch."""
    return torch.randn(*shape, generator=generator(seed, index, step, "picture"))


@torch.no_grad()
def generate(
    family: Family,
    net: nn.Module,
    captions: Sequence[str],
    seed: int,
    sampler: Sampler = "few_step",
    steps: int = 4,
    guidance: float = 1.0,
    *,
    timesteps: Sequence[int] | None = None,
    spacing: str = "trailing",
    first_index: int = 0,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """A picture for every caption, (N, 3, H, W) float32 on [-1, 1], on the CPU.

    Picture `i` starts from the noise of (seed, first_index + i), the same for every sampler, so that pictures side by
    side differ by the sampler alone. `guidance` 1 is none. `timesteps` replaces the few-step grid of `steps`;
    `spacing` is that of DDIM. `progress(done, N)` is called after each batch. Raises `NumericalError` on NaN.
    """
    if sampler == "few_step" and guidance != 1.0:
        raise ValueError("a few-step student has its guidance built in; sample it with guidance 1")
    grid: tuple[int, ...] = ()
    if sampler != "ddim":
        grid = tuple(timesteps) if timesteps is not None else family.grid(steps).timesteps
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    was_training = net.training
    net.eval()
    pictures = []
    try:
        for start in range(0, len(captions), batch):
            texts = list(captions[start : start + batch])
            indices = range(first_index + start, first_index + start + len(texts))
            condition = family.encode(texts)

            def denoise(x_t: Tensor, t: Tensor, condition: Conditioning = condition) -> Tensor:
                return family.guided_x0(net, x_t, t, condition, guidance)

            def noise(step: int, indices: range = indices) -> Tensor:
                rows = [picture_noise(family.latent_shape, seed, index, step) for index in indices]
                return torch.stack(rows).to(device)

            if sampler == "ddim":
                latents = ddim(denoise, family.scheduler_config, steps, noise(0), spacing)
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
    finally:
        net.train(was_training)
    return torch.cat(pictures)


def ddim(
    denoise: Callable[[Tensor, Tensor], Tensor],
    config: dict[str, Any],
    steps: int,
    x: Tensor,
    spacing: str = "trailing",
) -> Tensor:
    """Deterministic DDIM (eta 0) from pure noise `x` (B, c, h, w) to x0, by the stock diffusers scheduler.

    `config` gives the betas. The scheduler is told that the network answers in x0, which every family does.
    """
    scheduler: Any = DDIMScheduler(
        **{key: config[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")},
        trained_betas=config.get("trained_betas"),
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
        set_alpha_to_one=config.get("set_alpha_to_one", False),
        steps_offset=config.get("steps_offset", 1),
        timestep_spacing=spacing,
        prediction_type="sample",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, at(int(t), x)), t, x).prev_sample
    return x
