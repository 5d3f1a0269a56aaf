"""Noise schedules, and conversions between noise, clean sample and velocity.

Variance-preserving and flow schedules both define `x_t = alpha(t) x0 + sigma(t) eps`. All computations are in float32.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from flashdmd_cli.core.grid import NUM_TRAIN_TIMESTEPS

Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What a network predicts, named as diffusers' `prediction_type`: the noise, the velocity, or x0."""
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


class Schedule(Protocol):
    """A forward process `x_t = alpha(t) x0 + sigma(t) eps`; times are (B,) floats on [0, 1000]."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def sample(self, u: Tensor, low: float, high: float) -> Tensor:
        """Training times (B,) between `low` and `high`, computed from uniform numbers `u` (B,) on [0, 1)."""


class VPSchedule:
    """Variance-preserving schedule on integer timesteps (DDPM, Ho et al. 2020): `alpha^2 + sigma^2 = 1`.

    With zero terminal SNR (Lin et al. 2023) alpha is 0 at the last timestep: x_t is pure noise there, so x0 can be
    computed from a predicted velocity or x0, but not from predicted noise.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """`alphas_cumprod` (T,) is the attribute of that name of diffusers' schedulers, `alpha(t)^2`."""
        self.alphas_cumprod = alphas_cumprod.float()

    def _at(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod.to(t.device)[t.float().round().long()]

    def alpha(self, t: Tensor) -> Tensor:
        return self._at(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._at(t)).sqrt()

    def sample(self, u: Tensor, low: float, high: float) -> Tensor:
        """Integer timesteps, uniform on `low`, ..., `high`, both included."""
        return (low + u * (high - low + 1)).floor().clamp(max=high)


class FlowSchedule:
    """Rectified flow (Esser et al. 2024): `sigma = t / 1000`, `alpha = 1 - sigma`.

    `shift` s changes only the distribution of training times: uniform `tau` becomes `s tau / (1 + (s - 1) tau)`. Times
    passed to `alpha` and `sigma` are not shifted; the timesteps of stock flow schedulers are shifted already.
    """

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = shift

    def sigma(self, t: Tensor) -> Tensor:
        return t.float() / NUM_TRAIN_TIMESTEPS

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t)

    def sample(self, u: Tensor, low: float, high: float) -> Tensor:
        """Shifted times; `low` and `high` are bounds before the shift."""
        return shifted((low + u * (high - low)) / NUM_TRAIN_TIMESTEPS, self.shift) * NUM_TRAIN_TIMESTEPS


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """`s sigma / (1 + (s - 1) sigma)`: noise levels on [0, 1] raised for `s > 1` (Esser et al. 2024, Eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def logit_normal(u: Tensor) -> Tensor:
    """Numbers (B,) of the logit-normal(0, 1) distribution on (0, 1), from uniform `u` (Esser et al. 2024, Eq. 19)."""
    return torch.special.ndtri(u.float()).sigmoid()


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """`values` (B,) reshaped to (B, 1, ..., 1), to be broadcast over samples `x` (B, ...)."""
    return values.float().view(-1, *(1,) * (x.ndim - 1))


def _both(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at `t` (B,), reshaped to be broadcast over `x` (B, ...)."""
    return per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Diffuse `x0` (B, ...) with `noise` of the same shape to timesteps `t` (B,)."""
    alpha, sigma = _both(schedule, x0, t)
    return alpha * x0.float() + sigma * noise.float()


def x0_from_eps(schedule: Schedule, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Clean sample from a noise prediction."""
    alpha, sigma = _both(schedule, x_t, t)
    return (x_t.float() - sigma * eps.float()) / alpha


def eps_from_x0(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Noise from a prediction of the clean sample."""
    alpha, sigma = _both(schedule, x_t, t)
    return (x_t.float() - alpha * x0.float()) / sigma


def x0_from_v(schedule: Schedule, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Clean sample from a velocity: VP `v = alpha eps - sigma x0` (Salimans & Ho 2022), flow `v = eps - x0`."""
    alpha, sigma = _both(schedule, x_t, t)
    if isinstance(schedule, VPSchedule):
        return alpha * x_t.float() - sigma * v.float()
    return x_t.float() - sigma * v.float()


def velocity(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Velocity from a clean sample and its noise; definitions as in `x0_from_v`."""
    if isinstance(schedule, VPSchedule):
        alpha, sigma = _both(schedule, x0, t)
        return alpha * eps.float() - sigma * x0.float()
    return eps.float() - x0.float()


def x0_from_output(schedule: Schedule, prediction: Prediction, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Clean sample from a network's output. Affine in the output, so guidance can be applied before or after."""
    if prediction == "sample":
        return output.float()
    convert = x0_from_v if prediction == "v_prediction" else x0_from_eps
    return convert(schedule, output, x_t, t)


def output_of(schedule: Schedule, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Training target of a network with this prediction type, for `x0` diffused with `noise` to `t`."""
    if prediction == "sample":
        return x0
    return velocity(schedule, x0, noise, t) if prediction == "v_prediction" else noise


def signal_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """SenseFlow's soft weight of the adversarial loss, `sqrt(alpha_bar)`, which is `alpha(t)`; (B,)."""
    return schedule.alpha(t)
