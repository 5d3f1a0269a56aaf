"""Transition density of a few-step sampler, its log-ratio to a reference student, and the preference margin of a pair.

A student at timestep t predicts x0(z_t); the sampler then draws `z_next = alpha x0 + sigma eps` at the next timestep.
So the transition is the Gaussian `p(z_next | z_t, c) = N(alpha x0(z_t), sigma^2 I)`, with alpha and sigma of the *next*
timestep, for VP and flow schedules alike: diffusers' `LCMScheduler` and `FlowMatchLCMScheduler` sample from it. The
last step of a grid returns x0 and has no density.

States and clean samples are (B, ...), timesteps (B,), results (B,) in nats, float32, summed over all dimensions.
"""

from __future__ import annotations

import math

from torch import Tensor

from flashdmd_cli.core.schedules import Schedule, per_sample


def _over_dimensions(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _coefficients(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)


def log_density(schedule: Schedule, z_next: Tensor, x0: Tensor, t_next: Tensor) -> Tensor:
    """log p(z_next | z_t, c) of a step to `z_next` at `t_next` whose prediction is `x0`."""
    alpha, sigma = _coefficients(schedule, t_next, x0)
    residual = (z_next.float() - alpha * x0.float()) / sigma
    return _over_dimensions(-0.5 * residual.square() - sigma.log() - 0.5 * math.log(2 * math.pi))


def log_ratio(schedule: Schedule, z_next: Tensor, x0: Tensor, x0_ref: Tensor, t_next: Tensor) -> Tensor:
    """log p(z_next) - log p_ref(z_next), for the predictions of student and reference at the same z_t.

    Computed in factored form, `(alpha / sigma^2) <z_next - alpha (x0 + x0_ref) / 2, x0 - x0_ref>`: subtracting two
    large log-densities would lose small differences to rounding.
    """
    alpha, sigma = _coefficients(schedule, t_next, x0)
    x0, x0_ref = x0.float(), x0_ref.float()
    return _over_dimensions(alpha / sigma.square() * (z_next.float() - alpha * (x0 + x0_ref) / 2) * (x0 - x0_ref))


def preference_margin(
    schedule: Schedule, winner: Tensor, loser: Tensor, x0: Tensor, x0_ref: Tensor, t_next: Tensor
) -> Tensor:
    """Preference margin H(w, l) (Eq. 13) of a winner and a loser, both sampled at `t_next` from the same z_t.

    They share mean and variance, so normalisers and squares cancel and the margin is linear in the student's x0:
    `H = (alpha / sigma^2) <winner - loser, x0 - x0_ref> = (alpha / sigma) <eps_w - eps_l, x0 - x0_ref>`.
    """
    alpha, sigma = _coefficients(schedule, t_next, x0)
    return _over_dimensions(alpha / sigma.square() * (winner.float() - loser.float()) * (x0.float() - x0_ref.float()))


def step_kl(schedule: Schedule, x0: Tensor, x0_ref: Tensor, t_next: Tensor) -> Tensor:
    """KL(p || p_ref) of one step, `(alpha / sigma)^2 |x0 - x0_ref|^2 / 2`, from the predictions of the margin."""
    alpha, sigma = _coefficients(schedule, t_next, x0)
    snr = (alpha / sigma).square()
    return _over_dimensions(0.5 * snr * (x0.float() - x0_ref.float()).square())
