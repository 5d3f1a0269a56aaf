"""The loss of each role, as both loops use them. Noise comes from named generators, so a step can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashdmd_cli.core import losses
from flashdmd_cli.core.grid import Grid
from flashdmd_cli.core.rollout import at, rollout
from flashdmd_cli.core.schedules import add_noise, output_of, signal_weight
from flashdmd_cli.data.shards import Batch
from flashdmd_cli.models.conditioning import Conditioning
from flashdmd_cli.models.denoiser import Denoiser
from flashdmd_cli.models.family import Family
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import Recipe

GAN_LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "hinge": (losses.hinge_generator_loss, losses.hinge_discriminator_loss),
    "softplus": (losses.softplus_generator_loss, losses.softplus_discriminator_loss),
}


@dataclass(frozen=True)
class Draws:
    """Random numbers of one micro-batch: a function of (seed, rank, iteration, micro-batch, purpose)."""

    seed: int
    rank: int
    iteration: int
    micro: int
    device: torch.device

    def generator(self, role: str) -> torch.Generator:
        return generator(self.seed, self.rank, self.iteration, f"{role}/{self.micro}")

    def normal(self, role: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Standard normal noise."""
        return torch.randn(shape, generator=self.generator(role)).to(self.device)

    def timesteps(self, role: str, num: int, low: int, high: int) -> Tensor:
        """`num` timesteps, uniform on [low, high], both included."""
        return torch.randint(low, high + 1, (num,), generator=self.generator(role)).to(self.device)

    def choice(self, role: str, num: int, high: int) -> Tensor:
        """`num` numbers, uniform on [0, high), long."""
        return torch.randint(high, (num,), generator=self.generator(role)).to(self.device)

    def corner(self, role: str, x: Tensor, side: int) -> tuple[int, int]:
        """Top and left of a square crop of `side` from `x` (B, C, H, W), uniform over all places."""
        room = torch.tensor([x.shape[-2] - side, x.shape[-1] - side])
        top, left = (torch.rand(2, generator=self.generator(role)) * (room + 1)).long().tolist()
        return top, left


@dataclass(frozen=True)
class Objective:
    """A recipe bound to a family and a grid: the losses of student, fake score and discriminator."""

    recipe: Recipe
    family: Family
    grid: Grid

    def __post_init__(self) -> None:
        gan, side = self.recipe.gan, self.family.resolution
        if gan.kind == "pixel" and gan.decode == "crop" and gan.crop_px > side:
            raise UsageError(
                f"gan.crop_px: {gan.crop_px} is more than the {side} pixels that the teacher draws",
                hint=f"--set gan.crop_px={side // 2}, or --set gan.decode=full",
            )

    def conditioning(self, batch: Batch) -> Conditioning:
        """What a batch tells a denoiser: captions, from the data's cache where there is one, else encoded now.

        And sizes: the pictures' own where the batch has them (`model.micro_conditioning: data`), else a whole square's.
        """
        cond = self.family.encode(batch.captions) if batch.text is None else self.family.conditioning(batch.text)
        return cond if batch.sizes is None else self.family.sized(cond, batch.sizes)

    # -- the student's way down the grid ------------------------------------------------------------------------------

    def simulate(self, student: Denoiser, x: Tensor, cond: Conditioning, draws: Draws, start: int, stop: int | None,
             role: str) -> Tensor:  # fmt: skip
        """Backward simulation B without gradient: from the noisy state at `start` to that at `stop` (None: x0)."""
        with torch.no_grad():
            return rollout(
                lambda x_t, t: student.x0(x_t, t, cond),
                self.family.schedule,
                self.grid.timesteps,
                x,
                lambda index: draws.normal(f"{role}/{index}", x.shape),
                start,
                stop,
            )

    def student_x0(self, student: Denoiser, x_t: Tensor, index: int, cond: Conditioning) -> Tensor:
        """The student's answer at grid step `index`."""
        return student.x0(x_t, at(self.grid.timesteps[index], x_t), cond)

    def adversarial_state(self, student: Denoiser, x: Tensor, index: int, cond: Conditioning, draws: Draws) -> Tensor:
        """Noisy state of the last step, where the GAN acts, from the student's x0 `x` at step `index`.

        `last_step`: the state that inference meets, from an earlier step. `renoise`: a finished x0 noised again
        (Eq. 8-9).
        """
        last = len(self.grid) - 1
        schedule, timesteps = self.family.schedule, self.grid.timesteps
        if index < last:
            x = add_noise(schedule, x, draws.normal("carry", x.shape), at(timesteps[index + 1], x))
            if self.recipe.gan.input == "last_step":
                return self.simulate(student, x, cond, draws, index + 1, last, "carry")
            x = self.simulate(student, x, cond, draws, index + 1, None, "carry")
        return add_noise(schedule, x, draws.normal("renoise", x.shape), at(timesteps[last], x))

    # -- losses -------------------------------------------------------------------------------------------------------

    def dm_loss(self, x: Tensor, teacher: Denoiser, fake: Denoiser, cond: Conditioning, draws: Draws) -> Tensor:
        """Distribution matching of `x` (B, ...): both scores at one noised copy, in x0 space (Eq. 4)."""
        low, high = self.recipe.dm.renoise_range
        t = draws.timesteps("dm/t", len(x), low, high)
        with torch.no_grad():
            x_t = add_noise(self.family.schedule, x, draws.normal("dm/noise", x.shape), t)
            x0_real = teacher.guided_x0(x_t, t, cond, self.recipe.dm.guidance)
            x0_fake = fake.x0(x_t, t, cond)
        return losses.distribution_matching_loss(x, x0_real, x0_fake)

    def generator_loss(self, logits: list[Tensor], index: int) -> Tensor:
        """The student's adversarial loss at grid step `index`, before lambda_adv."""
        return GAN_LOSSES[self.recipe.gan.loss][0](logits, self.soft_weight(index))

    def discriminator_loss(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """The discriminator's loss (Eq. 10 in the recipe's form), before its soft weight."""
        return GAN_LOSSES[self.recipe.gan.loss][1](real, fake)

    def soft_weight(self, index: int) -> Tensor:
        """Factor () of every adversarial term at grid step `index` (SenseFlow's); 1 without `gan.soft_weights`."""
        t = torch.tensor([self.grid.timesteps[index]], device=self.family.device)
        weight = signal_weight(self.family.schedule, t)[0]
        return weight if self.recipe.gan.soft_weights else torch.ones_like(weight)

    def fake_loss(self, fake: Denoiser, x: Tensor, cond: Conditioning, draws: Draws) -> Tensor:
        """The fake score's own denoising loss on the student's detached output (Eq. 6), t over all of the schedule.

        In the network's own words (noise, velocity or x0), as its teacher was trained and as DMD2 does for noise. A
        velocity model's error in noise would weigh nothing at zero terminal SNR, where the student begins.
        """
        x, schedule = x.detach(), self.family.schedule
        t, noise = draws.timesteps("fake/t", len(x), 0, 999), draws.normal("fake/noise", x.shape)
        output = fake.output(add_noise(schedule, x, noise, t), t, cond)
        return losses.denoising_loss(output, output_of(schedule, self.family.prediction, x, noise, t))

    # -- what a discriminator looks at --------------------------------------------------------------------------------

    def view(self, latents: Tensor, draws: Draws) -> Tensor:
        """Decoded pictures, or a random crop of them: only the latents around the crop are decoded."""
        gan = self.recipe.gan
        if gan.decode == "full":
            return self._decode(latents)
        scale = self.family.resolution // self.family.latent_shape[-1]
        side, margin = gan.crop_px // scale, gan.crop_margin_latents
        top, left = draws.corner("crop", latents, side)
        # The decoder's middle block attends over all it is given, so a crop is an approximation; the margin takes the
        # padding's trace away from the edge.
        up, back = max(0, top - margin), max(0, left - margin)
        around = latents[..., up : top + side + margin, back : left + side + margin]
        y, x = (top - up) * scale, (left - back) * scale
        return self._decode(around)[..., y : y + gan.crop_px, x : x + gan.crop_px]

    def _decode(self, latents: Tensor) -> Tensor:
        with self.family.autocast():
            return self.family.decode(latents).float()

    def real_latents(self, pictures: Tensor, latents: Tensor | None) -> Tensor:
        """Latents of real pictures: the cached ones, else encoded now."""
        return self.family.encode_pictures(pictures) if latents is None else latents

    def real_view(self, pictures: Tensor, latents: Tensor | None, draws: Draws) -> Tensor:
        """Real pictures as the discriminator compares them: cropped alike, on request through the autoencoder."""
        if self.recipe.gan.real == "vae_roundtrip":
            with torch.no_grad():
                return self.view(self.real_latents(pictures, latents), draws)
        if self.recipe.gan.decode == "full":
            return pictures
        side = self.recipe.gan.crop_px
        top, left = draws.corner("real crop", pictures, side)
        return pictures[..., top : top + side, left : left + side]

    def latent_logits(
        self, heads: nn.Module, fake: Denoiser, x: Tensor, cond: Conditioning, draws: Draws, role: str
    ) -> list[Tensor]:
        """DMD2's discriminator: heads on inner features of the fake score, which sees `x` diffused to a random t."""
        t = draws.timesteps(f"{role}/t", len(x), 0, 999)
        x_t = add_noise(self.family.schedule, x, draws.normal(f"{role}/noise", x.shape), t)
        return heads(fake.features(x_t, t, cond))
