"""Noise schedules: what a noisy sample is, and how noise, clean sample and velocity follow from each other.

Both families write a noisy sample as `x_t = alpha(t) x0 + sigma(t) eps`. Everything is computed in float32.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What a network answers, in the words of diffusers' `prediction_type`: the noise, the velocity, or x0 itself."""
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def _per_sample(values: Tensor) -> Tensor:
    return values.float()[:, None, None, None]


class Schedule(Protocol):
    """A forward process `x_t = alpha(t) x0 + sigma(t) eps`; `t` is (B,), coefficients come back as (B, 1, 1, 1)."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...


class VPSchedule:
    """Variance-preserving schedule on integer timesteps (DDPM, Ho et al. 2020): `alpha^2 + sigma^2 = 1`.

    With zero terminal SNR (Lin et al. 2023) alpha is 0 at the last timestep: x_t is noise alone there, and x0 follows
    from the velocity or x0 itself, not from the noise.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """`alphas_cumprod`: (T,) products of the signal rates, as stock schedulers hold them."""
        self.alphas_cumprod = alphas_cumprod.float()

    def alpha(self, t: Tensor) -> Tensor:
        return _per_sample(self.alphas_cumprod.to(t.device)[t].sqrt())

    def sigma(self, t: Tensor) -> Tensor:
        return _per_sample((1 - self.alphas_cumprod.to(t.device)[t]).sqrt())


class FlowSchedule:
    """Rectified flow (Esser et al. 2024): `alpha = 1 - sigma`, `sigma = s u / (1 + (s - 1) u)` with `u = t / 1000`."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def sigma(self, t: Tensor) -> Tensor:
        u = t.float() / 1000
        return _per_sample(self.shift * u / (1 + (self.shift - 1) * u))

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t)


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Diffuse `x0` (B, C, H, W) with `noise` of the same shape to timesteps `t` (B,)."""
    return schedule.alpha(t) * x0.float() + schedule.sigma(t) * noise.float()


def x0_from_eps(schedule: Schedule, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Clean sample that a noise prediction implies."""
    return (x_t.float() - schedule.sigma(t) * eps.float()) / schedule.alpha(t)


def eps_from_x0(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Noise that a clean prediction implies."""
    return (x_t.float() - schedule.alpha(t) * x0.float()) / schedule.sigma(t)


def x0_from_v(schedule: Schedule, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Clean sample from a velocity: VP `v = alpha eps - sigma x0` (Salimans & Ho 2022), flow `v = eps - x0`."""
    if isinstance(schedule, VPSchedule):
        return schedule.alpha(t) * x_t.float() - schedule.sigma(t) * v.float()
    return x_t.float() - schedule.sigma(t) * v.float()


def velocity(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Velocity of a clean sample and its noise; VP and flow as in `x0_from_v`."""
    if isinstance(schedule, VPSchedule):
        return schedule.alpha(t) * eps.float() - schedule.sigma(t) * x0.float()
    return eps.float() - x0.float()


def v_from_x0(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Velocity that a clean prediction implies; inverse of `x0_from_v`."""
    return velocity(schedule, x0, eps_from_x0(schedule, x0, x_t, t), t)


def x0_from_output(schedule: Schedule, prediction: Prediction, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Clean sample that a network's answer implies: affine in the answer, so guidance may come before or after."""
    if prediction == "sample":
        return output.float()
    convert = x0_from_v if prediction == "v_prediction" else x0_from_eps
    return convert(schedule, output, x_t, t)


def output_of(schedule: Schedule, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a network of this kind should answer for `x0` diffused with `noise`."""
    if prediction == "sample":
        return x0
    return velocity(schedule, x0, noise, t) if prediction == "v_prediction" else noise


def signal_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """SenseFlow's soft weight of the adversarial loss, `sqrt(alpha_bar)`, which is `alpha(t)`; (B,)."""
    return schedule.alpha(t).flatten()
