"""Drawing with a stock pipeline, where the noise of a picture does not depend on the batch that it is drawn in."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.evaluation.baselines.preset import Preset
from flashdmd_cli.evaluation.generate import NoiseKey, in_batches, picture_noise
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.randomness import generator as noise_generator

PIXELS = 4 * 1024 * 1024
"""Pixels in a batch: 4 pictures of 1024 pixels, as for students and teachers."""
MAX_BATCH = 32


def default_batch(preset: Preset) -> int:
    """Pictures that are drawn at once."""
    return max(1, min(MAX_BATCH, PIXELS // preset.size**2))


@contextmanager
def own_noise(scheduler: Any, keys: Sequence[NoiseKey]) -> Iterator[None]:
    """Inside, every picture gets the noise of its own generators at each step of `scheduler`.

    The generators are those of `picture_noise`, so that a picture starts from the same noise, and gets the same noise
    at each step, as in `generate`. They replace whatever the pipeline passes: that of SD3 passes none, and the
    scheduler would then use the global one.
    """
    step = type(scheduler).step
    if "generator" not in inspect.signature(step).parameters:
        yield
        return
    counter = itertools.count(1)

    @functools.wraps(step)
    def with_own(*args: Any, generator: Any = None, **kwargs: Any) -> Any:
        number = next(counter)
        own = [noise_generator(key.seed, key.index, number, key.purpose) for key in keys]
        return step(scheduler, *args, generator=own, **kwargs)

    scheduler.step = with_own
    try:
        yield
    finally:
        del scheduler.step


@torch.no_grad()
def draw(
    pipeline: Any,
    preset: Preset,
    prompts: Sequence[str],
    seed: int,
    first_index: int = 0,
    *,
    keys: Sequence[NoiseKey] | None = None,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    """A picture for every prompt, (N, 3, size, size) float32 on [-1, 1], on the CPU.

    Picture `i` starts from the noise of (seed, first_index + i), or of `keys[i]` where given. `batch` pictures are
    drawn at once (default: by their size), fewer if the accelerator's memory is too small. `progress(done, N)` is
    called after each batch, `step(B)` after each step of the B pictures of one. Raises `NumericalError` for pictures
    with NaN.
    """
    batch = batch or default_batch(preset)
    keys = keys or [NoiseKey(seed, first_index + i) for i in range(len(prompts))]
    side = preset.size // pipeline.vae_scale_factor
    shape = (getattr(pipeline, preset.part).config.in_channels, side, side)
    grid = {key: list(value) for key in ("timesteps", "sigmas") if (value := getattr(preset, key)) is not None}

    def draw_part(which: slice) -> Tensor:
        texts, part = list(prompts[which]), keys[which]
        noise = torch.stack([picture_noise(shape, key.seed, key.index, purpose=key.purpose) for key in part])

        def count(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step is not None:
                step(len(texts))
            return tensors

        with own_noise(pipeline.scheduler, part):
            drawn = pipeline(
                prompt=texts,
                negative_prompt=None if preset.negative is None else [preset.negative] * len(texts),
                height=preset.size,
                width=preset.size,
                num_inference_steps=preset.steps,
                guidance_scale=preset.guidance,
                latents=noise,
                output_type="pt",
                callback_on_step_end=count,
                **grid,
            ).images
        pictures = (drawn.float() * 2 - 1).cpu()
        if not pictures.isfinite().all():
            raise NumericalError(
                f"--model {preset.name}: the pictures are not finite", hint="are these the weights of this preset?"
            )
        return pictures

    return in_batches(draw_part, len(prompts), batch, progress)
