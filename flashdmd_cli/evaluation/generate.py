"""Draws pictures: the student in few steps, and its teacher three ways, all from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdmd_cli.core.rollout import rollout
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.evaluation.names import Sampler
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Denoiser
from flashdmd_cli.families.family import Family
from flashdmd_cli.runs.errors import FlashDMDError, NumericalError
from flashdmd_cli.runs.randomness import generator


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
    first_index: int = 0,
    keys: Sequence[NoiseKey] | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    """A picture for every caption, (N, 3, H, W) float32 on [-1, 1], on the CPU.

    Picture `i` starts from the noise of (seed, first_index + i), or of `keys[i]` where given, the same for every
    sampler, so that pictures side by side differ by the sampler alone. `guidance` 1 is none. `size` is the height and
    width in pixels (default: the size that the teacher was trained for). `batch` pictures are drawn at once, fewer if
    the accelerator's memory is too small. `progress(done, N)` is called after each batch, `step(B)` after each step of
    the B pictures of one. Raises `NumericalError` on NaN.
    """
    if sampler == "few_step" and guidance != 1.0:
        raise ValueError("a few-step student has its guidance built in; sample it with guidance 1")
    grid = () if sampler == "ddim" else family.grid(steps).timesteps
    keys = keys or [NoiseKey(seed, first_index + i) for i in range(len(captions))]
    shape = family.latent_shape if size is None else latent_shape(family, size)

    def draw(part: slice) -> Tensor:
        condition = family.encode(list(captions[part]))
        if size is not None:
            condition = sized(family, condition, size)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            x0 = net.guided_x0(x_t, t, condition, guidance)
            if step is not None:
                step(len(x_t))
            return x0

        def noise(step: int) -> Tensor:
            rows = [picture_noise(shape, key.seed, key.index, step, key.purpose) for key in keys[part]]
            return torch.stack(rows).to(family.device)

        if sampler == "ddim":
            latents = family.solve(denoise, steps, noise(0))
        else:
            latents = rollout(denoise, family.schedule, grid, noise(0), noise)
        pictures = family.decode(latents).float().clamp(-1, 1).cpu()
        if not pictures.isfinite().all():
            raise NumericalError(
                f"{sampler}: the pictures that the network draws are not finite",
                hint="its weights are no use: draw with an earlier checkpoint, or train with a lower learning rate",
            )
        return pictures

    return in_batches(draw, len(captions), batch, progress)


def in_batches(
    draw: Callable[[slice], Tensor], num: int, batch: int, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Pictures 0 to `num` - 1, of which `draw` returns those of a slice, at most `batch` at once.

    A batch for which the accelerator has too little memory is halved, and so are all after it. `progress(done, num)` is
    called after each. Raises FlashDMDError if the memory is too small for a single picture.
    """
    pictures: list[Tensor] = []
    done = 0
    while done < num:
        end, failed = min(done + batch, num), False
        try:
            pictures.append(draw(slice(done, end)))
        except torch.OutOfMemoryError as error:
            if end - done == 1:
                raise FlashDMDError(
                    f"--device: too little memory for one picture: {str(error).split('. ')[0]}",
                    hint="--device cpu has the machine's main memory",
                ) from error
            failed = True
        if failed:  # outside `except`, where the exception would keep the tensors of the batch alive
            batch = (end - done) // 2
            torch.cuda.empty_cache()
            continue
        done = end
        if progress is not None:
            progress(done, num)
    return torch.cat(pictures)


def latent_shape(family: Family, size: tuple[int, int]) -> tuple[int, ...]:
    """Channels, height and width of the latents of pictures with this height and width in pixels."""
    pixels = family.resolution // family.latent_shape[-1]
    return (family.latent_shape[0], size[0] // pixels, size[1] // pixels)


def sized(family: Family, condition: Conditioning, size: tuple[int, int]) -> Conditioning:
    """The conditioning with an uncropped picture's height and width, if the family's network takes these."""
    height, width = size
    try:
        return family.sized(condition, torch.tensor([[height, width, 0.0, 0.0, height, width]] * condition.batch))
    except Unfit:
        return condition
