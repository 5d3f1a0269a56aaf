"""The losses of student, fake score and discriminator. Random numbers come from `Draws`, so steps are repeatable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashdmd_cli.core import losses
from flashdmd_cli.core.grid import NUM_TRAIN_TIMESTEPS, Grid
from flashdmd_cli.core.rollout import at, rollout
from flashdmd_cli.core.schedules import add_noise, logit_normal, output_of, signal_weight
from flashdmd_cli.data.shards import Batch
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Denoiser
from flashdmd_cli.families.family import Family
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.training.draws import Draws

ALL_TIMES = (0, NUM_TRAIN_TIMESTEPS - 1)
GAN_LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "hinge": (losses.hinge_generator_loss, losses.hinge_discriminator_loss),
    "softplus": (losses.softplus_generator_loss, losses.softplus_discriminator_loss),
}


@dataclass(frozen=True)
class Objective:
    """A recipe bound to a family and a grid: the losses of student, fake score and discriminator."""

    recipe: Recipe
    family: Family
    grid: Grid

    def __post_init__(self) -> None:
        gan, side = self.recipe.gan, self.family.resolution
        scale = side // self.family.latent_shape[-1]
        if gan.kind == "pixel" and gan.decode == "crop" and gan.crop_px % scale:
            raise UsageError(
                f"gan.crop_px: {gan.crop_px} is no multiple of the {scale} pixels of a latent of this teacher",
                hint=f"--set gan.crop_px={max(1, gan.crop_px // scale) * scale}",
            )
        if gan.kind == "pixel" and gan.decode == "crop" and gan.crop_px > side:
            raise UsageError(
                f"gan.crop_px: {gan.crop_px} exceeds the teacher's resolution of {side} pixels",
                hint=f"--set gan.crop_px={side // 2}, or --set gan.decode=full",
            )

    def conditioning(self, batch: Batch) -> Conditioning:
        """The conditioning of a batch: cached text embeddings if the data have them, otherwise encoded captions.

        Picture sizes are the batch's own if it has any (`model.micro_conditioning: data`), else those of an uncropped
        square.
        """
        cond = self.family.encode(batch.captions) if batch.text is None else self.family.conditioning(batch.text)
        return cond if batch.sizes is None else self.family.sized(cond, batch.sizes)

    # -- sampling with the student ------------------------------------------------------------------------------------

    def simulate(self, student: Denoiser, x: Tensor, cond: Conditioning, draws: Draws, start: int, stop: int | None,
             role: str) -> Tensor:  # fmt: skip
        """Backward simulation without gradient: from noisy state `x` at grid step `start` to that at `stop` (None: x0).

        `role` names the random numbers.
        """
        with torch.no_grad():
            return rollout(
                lambda x_t, t: student.x0(x_t, t, cond),
                self.family.schedule,
                self.grid.timesteps,
                x,
                lambda index: draws.normal(f"{role}/{index}", x.shape[1:]),
                start,
                stop,
            )

    def student_x0(self, student: Denoiser, x_t: Tensor, index: int, cond: Conditioning) -> Tensor:
        """The student's x0 prediction (B, ...) at grid step `index`."""
        return student.x0(x_t, at(self.grid.timesteps[index], x_t), cond)

    def adversarial_state(self, student: Denoiser, x: Tensor, index: int, cond: Conditioning, draws: Draws) -> Tensor:
        """Noisy state at the last grid step, for the adversarial loss, from the student's x0 prediction `x` at `index`.

        `gan.input: last_step` continues sampling to the last step, as at inference; `renoise` samples to the end and
        adds noise to the resulting x0 (Eq. 8-9).
        """
        last = len(self.grid) - 1
        schedule, timesteps = self.family.schedule, self.grid.timesteps
        if index < last:
            x = add_noise(schedule, x, draws.normal("carry", x.shape[1:]), at(timesteps[index + 1], x))
            if self.recipe.gan.input == "last_step":
                return self.simulate(student, x, cond, draws, index + 1, last, "carry")
            x = self.simulate(student, x, cond, draws, index + 1, None, "carry")
        return add_noise(schedule, x, draws.normal("renoise", x.shape[1:]), at(timesteps[last], x))

    def guidance(self, draws: Draws) -> float | Tensor:
        """The teacher's guidance: one number, or (B,) uniform on the recipe's range."""
        chosen = self.recipe.dm.guidance
        if not isinstance(chosen, tuple):
            return chosen
        low, high = chosen
        return low + (high - low) * draws.uniform("dm/guidance")

    # -- losses -------------------------------------------------------------------------------------------------------

    def dm_loss(self, x: Tensor, teacher: Denoiser, fake: Denoiser, cond: Conditioning, draws: Draws) -> Tensor:
        """Distribution-matching loss of `x` (B, ...), with both scores evaluated on the same noised `x` (Eq. 4)."""
        low, high = self.recipe.dm.renoise_range
        t = self.family.schedule.sample(draws.uniform("dm/t"), low, high)
        with torch.no_grad():
            x_t = add_noise(self.family.schedule, x, draws.normal("dm/noise", x.shape[1:]), t)
            x0_real = teacher.guided_x0(x_t, t, cond, self.guidance(draws))
            x0_fake = fake.x0(x_t, t, cond)
        return losses.distribution_matching_loss(x, x0_real, x0_fake)

    def generator_loss(self, logits: list[Tensor], index: int) -> Tensor:
        """The student's adversarial loss at grid step `index`, not multiplied by lambda_adv."""
        return GAN_LOSSES[self.recipe.gan.loss][0](logits, self.soft_weight(index))

    def discriminator_loss(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """The discriminator's loss (Eq. 10, hinge or softplus), not multiplied by the soft weight."""
        return GAN_LOSSES[self.recipe.gan.loss][1](real, fake)

    def soft_weight(self, index: int) -> Tensor:
        """Factor () of adversarial losses at grid step `index` (SenseFlow); 1 without `gan.soft_weights`."""
        t = torch.tensor([self.grid.timesteps[index]], device=self.family.device)
        weight = signal_weight(self.family.schedule, t)[0]
        return weight if self.recipe.gan.soft_weights else torch.ones_like(weight)

    def fake_loss(self, fake: Denoiser, x: Tensor, cond: Conditioning, draws: Draws) -> Tensor:
        """Denoising loss of the fake score on the student's detached output `x` (Eq. 6), t over the whole schedule.

        The target is the network's own prediction type (noise, velocity or x0), as in the teacher's training and in
        DMD2. A noise target would give a velocity model no loss at zero terminal SNR, where sampling starts.
        """
        x, schedule = x.detach(), self.family.schedule
        u = draws.uniform("fake/t")
        u = logit_normal(u) if self.recipe.fake.times == "logit_normal" else u
        t, noise = schedule.sample(u, *ALL_TIMES), draws.normal("fake/noise", x.shape[1:])
        output = fake.output(add_noise(schedule, x, noise, t), t, cond)
        return losses.denoising_loss(output, output_of(schedule, self.family.prediction, x, noise, t))

    # -- inputs of the discriminator ----------------------------------------------------------------------------------

    def view(self, latents: Tensor, draws: Draws) -> Tensor:
        """Decoded pictures (B, 3, H, W), or a random crop of each, for which only the latents around it are decoded."""
        gan = self.recipe.gan
        if gan.decode == "full":
            return self._decode(latents)
        scale = self.family.resolution // self.family.latent_shape[-1]
        side, (height, width) = gan.crop_px // scale, latents.shape[-2:]
        # The decoder's middle block attends over its whole input, so a decoded crop is an approximation; a margin is
        # decoded and cut away to remove the padding artefacts at its edges.
        tall, wide = (min(side + 2 * gan.crop_margin_latents, room) for room in (height, width))
        corners = draws.corners("crop", height - side, width - side)
        around = [(_around(top, side, tall, height), _around(left, side, wide, width)) for top, left in corners]
        decoded = self._decode(_crops(latents, around, tall, wide))
        inner = [((top - up) * scale, (left - back) * scale)
                 for (top, left), (up, back) in zip(corners, around, strict=True)]  # fmt: skip
        return _crops(decoded, inner, gan.crop_px, gan.crop_px)

    def _decode(self, latents: Tensor) -> Tensor:
        with self.family.autocast():
            return self.family.decode(latents).float()

    def real_latents(self, pictures: Tensor, latents: Tensor | None) -> Tensor:
        """Latents of real pictures: `latents` if they are cached, otherwise encoded `pictures`."""
        return self.family.encode_pictures(pictures) if latents is None else latents

    def real_view(self, pictures: Tensor, latents: Tensor | None, draws: Draws) -> Tensor:
        """Real pictures for the discriminator: cropped like the student's, and encoded and decoded if
        `gan.real: vae_roundtrip`."""
        if self.recipe.gan.real == "vae_roundtrip":
            with torch.no_grad():
                return self.view(self.real_latents(pictures, latents), draws)
        if self.recipe.gan.decode == "full":
            return pictures
        side = self.recipe.gan.crop_px
        corners = draws.corners("real crop", pictures.shape[-2] - side, pictures.shape[-1] - side)
        return _crops(pictures, corners, side, side)

    def latent_logits(
        self, heads: nn.Module, fake: Denoiser, x: Tensor, cond: Conditioning, draws: Draws, role: str
    ) -> list[Tensor]:
        """Logits of DMD2's discriminator: heads on features of the fake score for `x` noised to random timesteps."""
        schedule = self.family.schedule
        t = schedule.sample(draws.uniform(f"{role}/t"), *ALL_TIMES)
        x_t = add_noise(schedule, x, draws.normal(f"{role}/noise", x.shape[1:]), t)
        return heads(fake.features(x_t, t, cond))


def _around(start: int, side: int, length: int, room: int) -> int:
    """Start of a window of `length` centred on the `side` positions from `start`, moved so as to lie in [0, room]."""
    return min(max(0, start - (length - side) // 2), room - length)


def _crops(x: Tensor, corners: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
    """Crops (B, C, height, width) of `x` (B, C, H, W), one per row, at its corner (top, left)."""
    return torch.stack([row[:, top : top + height, left : left + width]
                        for row, (top, left) in zip(x, corners, strict=True)])  # fmt: skip
