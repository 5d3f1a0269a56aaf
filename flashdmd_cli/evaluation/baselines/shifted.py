"""The scheduler of NitroFusion, whose denoiser is trained at smaller times than those of the sampling grid."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LCMScheduler
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class ShiftedLCMScheduler(LCMScheduler):
    """Latent consistency sampling in which level t of the grid is read at t' = floor(t * shift / 1000).

    The denoiser is evaluated at t', and its noise prediction is converted to x0 with the noise level of t'. The noise
    that is added for the next step has the level of the next t of the grid, without the shift.
    """

    shift = 1000
    """1000 is no shift: then this is LCMScheduler."""
    timesteps: Tensor
    levels: Tensor

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Set `timesteps`, those at which the denoiser is evaluated, and `levels`, the grid."""
        super().set_timesteps(*args, **kwargs)
        self.levels = self.timesteps
        self.timesteps = self.levels * self.shift // self.config.num_train_timesteps

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step from `sample` (B, ...) and the noise prediction for it at `timestep`, one of `timesteps`."""
        if self.step_index is None:
            self._init_step_index(timestep)
        alpha = self.alphas_cumprod[timestep]
        keep, gain = self.get_scalings_for_boundary_condition_discrete(timestep)
        x0 = gain * (sample - (1 - alpha).sqrt() * model_output) / alpha.sqrt() + keep * sample
        self._step_index += 1
        following = x0
        if self._step_index < len(self.levels):
            noise = randn_tensor(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            level = self.levels[self._step_index].expand(len(x0))
            following = self.add_noise(x0, noise, level)
        return LCMSchedulerOutput(prev_sample=following, denoised=x0) if return_dict else (following, x0)
