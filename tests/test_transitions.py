"""The re-noising step: its density against torch's Gaussians and the stock schedulers, its margin in closed form."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from flashdmd_cli.core.grid import vp_grid
from flashdmd_cli.core.losses import pairwise_cross_entropy, preference_loss
from flashdmd_cli.core.schedules import FlowSchedule, VPSchedule, per_sample
from flashdmd_cli.core.transitions import log_density, log_ratio, preference_margin, step_kl

VP = VPSchedule(torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0))
SCHEDULES = {"vp": (VP, 499), "flow": (FlowSchedule(3.0), 500)}
SHAPE = (2, 3, 4, 4)


def sample(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def coefficients(schedule, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma in the shape that multiplies samples."""
    return per_sample(schedule.alpha(t), sample(0)), per_sample(schedule.sigma(t), sample(0))


def gaussian(schedule, x0: torch.Tensor, t: torch.Tensor) -> Independent:
    """The step written out, in float64."""
    alpha, sigma = (values.double() for values in coefficients(schedule, t))
    return Independent(Normal(alpha * x0.double(), sigma.expand_as(x0)), 3)


@pytest.fixture(params=SCHEDULES)
def step(request):
    """A schedule, timesteps, a student's and the reference's prediction, and a pair drawn from another, older one."""
    schedule, timestep = SCHEDULES[request.param]
    t = torch.full((2,), timestep)
    x0, x0_ref, old = sample(0), sample(1), sample(2)
    alpha, sigma = coefficients(schedule, t)
    winner, loser = (alpha * old + sigma * sample(seed) for seed in (3, 4))
    return schedule, t, x0, x0_ref, winner, loser


def test_density_is_the_gaussian(step):
    schedule, t, x0, _, winner, _ = step
    torch.testing.assert_close(
        log_density(schedule, winner, x0, t).double(),
        gaussian(schedule, x0, t).log_prob(winner.double()),
        rtol=1e-5,
        atol=1e-4,
    )


def test_margin_and_its_gradient_are_those_of_the_four_gaussians(step):
    schedule, t, x0, x0_ref, winner, loser = step
    student, reference = gaussian(schedule, x0.requires_grad_(), t), gaussian(schedule, x0_ref, t)
    explicit = sum(
        sign * (student.log_prob(z.double()) - reference.log_prob(z.double())) for sign, z in ((1, winner), (-1, loser))
    )
    (expected,) = torch.autograd.grad(explicit.sum(), x0)
    margin = preference_margin(schedule, winner, loser, x0, x0_ref, t)
    torch.testing.assert_close(margin.double(), explicit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(margin.sum(), x0)[0], expected, rtol=1e-4, atol=1e-5)


def test_margin_is_the_noise_difference_times_the_disagreement(step):
    schedule, t, x0, x0_ref, winner, loser = step
    alpha, sigma = coefficients(schedule, t)
    eps = sample(3) - sample(4)
    expected = ((alpha / sigma) * eps * (x0 - x0_ref)).sum((1, 2, 3))
    torch.testing.assert_close(
        preference_margin(schedule, winner, loser, x0, x0_ref, t), expected, rtol=1e-4, atol=1e-3
    )


def test_log_ratio_is_the_difference_of_densities(step):
    schedule, t, x0, x0_ref, winner, _ = step
    expected = gaussian(schedule, x0, t).log_prob(winner.double()) - gaussian(schedule, x0_ref, t).log_prob(
        winner.double()
    )
    torch.testing.assert_close(log_ratio(schedule, winner, x0, x0_ref, t).double(), expected, rtol=1e-4, atol=1e-4)


def test_kl_is_that_of_the_gaussians(step):
    schedule, t, x0, x0_ref, *_ = step
    expected = kl_divergence(gaussian(schedule, x0, t), gaussian(schedule, x0_ref, t))
    torch.testing.assert_close(step_kl(schedule, x0, x0_ref, t).double(), expected, rtol=1e-5, atol=1e-5)


def test_margin_changes_sign_with_the_pair_and_ignores_a_common_shift(step):
    schedule, t, x0, x0_ref, winner, loser = step
    margin = preference_margin(schedule, winner, loser, x0, x0_ref, t)
    assert margin.abs().min() > 0.1
    torch.testing.assert_close(preference_margin(schedule, loser, winner, x0, x0_ref, t), -margin)
    shifted = preference_margin(schedule, winner + 0.7, loser + 0.7, x0, x0_ref, t)
    torch.testing.assert_close(shifted, margin, rtol=1e-4, atol=1e-3)


def test_a_student_that_is_its_reference_has_no_margin_and_a_loss_of_ln_2(step):
    schedule, t, x0, _, winner, loser = step
    margin = preference_margin(schedule, winner, loser, x0.requires_grad_(), x0.detach(), t)
    assert torch.equal(margin, torch.zeros(2)) and torch.equal(step_kl(schedule, x0, x0, t), torch.zeros(2))
    loss = preference_loss(margin, 500.0, x0[0].numel())
    assert loss.item() == pytest.approx(math.log(2))
    # The first step already pulls towards the winner: half of beta / d times the margin's own gradient.
    (gradient,) = torch.autograd.grad(loss, x0)
    alpha, sigma = coefficients(schedule, t)
    towards = alpha / sigma.square() * (winner - loser)
    torch.testing.assert_close(gradient, -0.5 * 500.0 / x0[0].numel() * towards / 2)


def test_the_values_of_the_four_step_grid():
    """alpha / sigma of the transitions to 749, 499 and 249 on SDXL's schedule."""
    t = torch.tensor([749, 499, 249])
    torch.testing.assert_close(
        (VP.alpha(t) / VP.sigma(t)).flatten(), torch.tensor([0.2450, 0.6200, 1.4426]), atol=2e-4, rtol=0
    )


def drawn_by(scheduler, index: int, x0: torch.Tensor, z: torch.Tensor, output) -> torch.Tensor:
    """What a stock scheduler draws at step `index` when the network means `x0` everywhere."""
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[index]
    return scheduler.step(output(z, x0, t), t, z, generator=torch.Generator().manual_seed(5), return_dict=False)[0]


def check_moments(schedule, t_next: float, x0: float, drawn: torch.Tensor) -> None:
    t = torch.tensor([t_next])
    error = schedule.sigma(t).item() / math.sqrt(drawn.numel())
    assert drawn.mean().item() == pytest.approx(schedule.alpha(t).item() * x0, abs=5 * error)
    assert drawn.std().item() == pytest.approx(schedule.sigma(t).item(), abs=5 * error)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_stock_lcm_scheduler_draws_from_this_density(index):
    grid = vp_grid(4)
    z, x0 = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(0)), torch.full((1, 4, 128, 128), 0.6)

    def eps(z_t, clean, t):
        at = t.reshape(1)
        return (z_t - VP.alpha(at) * clean) / VP.sigma(at)

    drawn = drawn_by(diffusers.LCMScheduler(**grid.config), index, x0, z, eps)
    check_moments(VP, grid.timesteps[index + 1], 0.6, drawn)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_stock_flow_lcm_scheduler_draws_from_this_density(index):
    schedule = FlowSchedule(3.0)
    scheduler = diffusers.FlowMatchLCMScheduler(shift=3.0)
    z, x0 = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(0)), torch.full((1, 4, 128, 128), 0.6)
    drawn = drawn_by(scheduler, index, x0, z, lambda z_t, clean, t: (z_t - clean) / (t / 1000))
    # The stock timesteps are a thousand sigma, shifted already.
    check_moments(schedule, scheduler.timesteps[index + 1].item(), 0.6, drawn)


def test_pairwise_cross_entropy():
    sure, none = torch.tensor([20.0]), torch.tensor([0.0])
    assert pairwise_cross_entropy(sure, none, torch.tensor([0.0])).item() == pytest.approx(0, abs=1e-6)
    assert pairwise_cross_entropy(sure, none, torch.tensor([1.0])).item() == pytest.approx(20, rel=1e-4)
    assert pairwise_cross_entropy(none, none, torch.tensor([1.0])).item() == pytest.approx(math.log(2))
    assert pairwise_cross_entropy(none, none, torch.tensor([0.5])).item() == pytest.approx(0, abs=1e-6)
    # A tie is two half pairs, and pulls the scores together.
    score = torch.tensor([1.0], requires_grad=True)
    tied = pairwise_cross_entropy(score, none, torch.tensor([0.5]))
    assert tied.item() > 0.05
    assert torch.autograd.grad(tied, score)[0].item() == pytest.approx(0.5 - 1 / (1 + math.e), rel=1e-4)


def test_pairs_of_a_prompt_with_many_count_less():
    score_0, score_1, label = torch.tensor([0.0, 0.0]), torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0])
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    weighted = pairwise_cross_entropy(score_0, score_1, label, torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx(0.25 * right + 0.75 * wrong)
