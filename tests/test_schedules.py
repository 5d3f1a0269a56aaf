"""Noise schedules against diffusers, and the way back from every prediction."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashdmd_cli.core.losses import dm_gradient
from flashdmd_cli.core.schedules import (
    PREDICTIONS,
    FlowSchedule,
    Schedule,
    VPSchedule,
    add_noise,
    eps_from_x0,
    output_of,
    signal_weight,
    velocity,
    x0_from_eps,
    x0_from_output,
    x0_from_v,
)

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDPM = DDPMScheduler(**SDXL)
VP = VPSchedule(DDPM.alphas_cumprod)

vp_times = st.lists(st.integers(0, 999), min_size=1, max_size=4)
# Flow has no signal at u = 1 and no noise at u = 0, so x0 or eps cannot be told from the other there.
flow_times = st.lists(st.floats(20.0, 980.0), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)
sizes = st.sampled_from([0.01, 1.0, 30.0])
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def pair(num: int, seed: int, size: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 2, 3, 4, generator=generator) * size, torch.randn(num, 2, 3, 4, generator=generator)


def close(found: Tensor, wanted: Tensor, scale: float) -> None:
    """`scale`: size of the largest number the result was computed from."""
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-6 * scale)


def round_trips(schedule: Schedule, t: Tensor, seed: int, size: float) -> None:
    """x_t made of known x0 and eps gives back both, and the velocity between them, from any one of the three."""
    x0, eps = pair(len(t), seed, size)
    x_t = add_noise(schedule, x0, eps, t)
    alpha, sigma = (values.view(-1, 1, 1, 1) for values in (schedule.alpha(t), schedule.sigma(t)))
    v = alpha * eps - sigma * x0 if isinstance(schedule, VPSchedule) else eps - x0
    largest = float(x0.abs().max() + eps.abs().max())
    amplified = largest / float(torch.minimum(alpha, sigma).min())
    close(x0_from_eps(schedule, eps, x_t, t), x0, amplified)
    close(eps_from_x0(schedule, x0, x_t, t), eps, amplified)
    close(velocity(schedule, x0, eps_from_x0(schedule, x0, x_t, t), t), v, amplified)
    close(x0_from_v(schedule, v, x_t, t), x0, 4 * largest)  # the velocity is well-conditioned at every t
    # Predictions that do not belong to x_t, as a network's do not, come back as well.
    guess = pair(len(t), seed + 1, 1.0)[1]
    close(eps_from_x0(schedule, x0_from_eps(schedule, guess, x_t, t), x_t, t), guess, amplified * (1 + 1 / size))
    v = velocity(schedule, guess, eps_from_x0(schedule, guess, x_t, t), t)
    close(x0_from_v(schedule, v, x_t, t), guess, amplified)


@quick
@given(t=vp_times, seed=seeds, size=sizes)
def test_vp_round_trips(t: list[int], seed: int, size: float) -> None:
    round_trips(VP, torch.tensor(t), seed, size)


@quick
@given(t=flow_times, seed=seeds, size=sizes, shift=st.sampled_from([1.0, 3.0]))
def test_flow_round_trips(t: list[float], seed: int, size: float, shift: float) -> None:
    round_trips(FlowSchedule(shift), torch.tensor(t), seed, size)


@quick
@given(t=vp_times)
def test_vp_preserves_variance(t: list[int]) -> None:
    times = torch.tensor(t)
    assert VP.alpha(times).shape == (len(t),)
    torch.testing.assert_close(VP.alpha(times) ** 2 + VP.sigma(times) ** 2, torch.ones(len(t)))
    # Times are floats; a whole one is its own integer's.
    assert torch.equal(VP.alpha(times.float()), VP.alpha(times)) and torch.equal(
        VP.sigma(times.double()), VP.sigma(times)
    )
    x0, eps = pair(len(t), 0, 1.0)
    assert torch.equal(add_noise(VP, x0, eps, times.float()), add_noise(VP, x0, eps, times))


def test_signal_falls_and_noise_rises_over_the_whole_range() -> None:
    everywhere = torch.arange(1000)
    for schedule in (VP, FlowSchedule(3.0)):
        assert (schedule.alpha(everywhere).flatten().diff() < 0).all()
        assert (schedule.sigma(everywhere).flatten().diff() > 0).all()


@quick
@given(t=vp_times, seed=seeds, size=sizes)
def test_vp_add_noise_is_that_of_ddpm(t: list[int], seed: int, size: float) -> None:
    times = torch.tensor(t)
    x0, eps = pair(len(t), seed, size)
    torch.testing.assert_close(add_noise(VP, x0, eps, times), DDPM.add_noise(x0, eps, times), rtol=1e-6, atol=1e-6)


@quick
@given(t=vp_times, seed=seeds)
def test_vp_velocity_is_that_of_ddpm(t: list[int], seed: int) -> None:
    times = torch.tensor(t)
    x0, eps = pair(len(t), seed, 1.0)
    v = velocity(VP, x0, eps, times)
    torch.testing.assert_close(v, DDPM.get_velocity(x0, eps, times), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [0, 249, 499, 999])
def test_vp_x0_is_that_of_ddim(kind: str, t: int) -> None:
    x_t, prediction = pair(2, t, 1.0)
    scheduler = DDIMScheduler(**SDXL, clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(1000)
    expected = scheduler.step(prediction, t, x_t).pred_original_sample
    to_x0 = {"epsilon": x0_from_eps, "v_prediction": x0_from_v}[kind]
    torch.testing.assert_close(to_x0(VP, prediction, x_t, torch.tensor([t, t])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_that_of_flow_match_euler(shift: float) -> None:
    """A stock scheduler's timesteps are shifted; they are 1000 sigma, and that is what our times are."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = FlowSchedule(shift)
    torch.testing.assert_close(ours.sigma(scheduler.timesteps), scheduler.sigmas, rtol=0.0, atol=1e-6)
    x0, eps = pair(1000, 0, 1.0)
    theirs = scheduler.scale_noise(x0, scheduler.timesteps, eps)
    torch.testing.assert_close(add_noise(ours, x0, eps, scheduler.timesteps), theirs, rtol=1e-6, atol=2e-6)


def test_the_few_steps_of_a_stock_flow_scheduler_are_not_shifted_again() -> None:
    scheduler = FlowMatchLCMScheduler(shift=3)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 857.69, 602.15, 8.93], abs=0.01)
    found = FlowSchedule(3.0).sigma(scheduler.timesteps)
    assert found.tolist() == pytest.approx([t / 1000 for t in scheduler.timesteps.tolist()], abs=1e-6)
    torch.testing.assert_close(found, scheduler.sigmas[:-1], rtol=0.0, atol=1e-6)
    torch.testing.assert_close(FlowSchedule(3.0).alpha(scheduler.timesteps), 1 - found)


def test_flow_times_of_training_are_shifted_as_stock_schedulers_shift() -> None:
    """Uniform numbers become the sigmas of the stock scheduler: [1, .75, .5, .25] are 1, .9, .75, .5 (SD3)."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    u = torch.tensor([1.0, 0.75, 0.5, 0.25])
    scheduler.set_timesteps(sigmas=u.tolist())
    ours = FlowSchedule(3.0).sample(u, 0, 1000)
    assert ours.tolist() == pytest.approx([1000, 900, 750, 500])
    torch.testing.assert_close(ours, scheduler.timesteps)
    torch.testing.assert_close(FlowSchedule(3.0).sigma(ours), scheduler.sigmas[:-1])
    # Without a shift they are as they come; bounds are bounds before the shift.
    torch.testing.assert_close(FlowSchedule().sample(u, 0, 1000), 1000 * u)
    bounds = FlowSchedule(3.0).sample(torch.tensor([0.0, 1.0]), 250, 750)
    assert bounds.tolist() == pytest.approx([500, 900])
    times = FlowSchedule(3.0).sample(torch.linspace(0, 1, 50), 20, 980)
    assert (times.diff() > 0).all() and 0 < times.min() and times.max() < 1000


def test_flow_velocity_takes_the_scheduler_to_x0() -> None:
    """One Euler step of the stock scheduler down to sigma = 0 ends in `x0_from_v`."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[0.75])
    x_t, v = pair(2, 0, 1.0)
    theirs = scheduler.step(v, scheduler.timesteps[0], x_t).prev_sample
    torch.testing.assert_close(x0_from_v(FlowSchedule(3.0), v, x_t, scheduler.timesteps[:1].repeat(2)), theirs)


def test_flow_at_its_ends_is_pure() -> None:
    x0, eps = pair(2, 0, 1.0)
    for shift in (1.0, 3.0):
        assert torch.equal(add_noise(FlowSchedule(shift), x0, eps, torch.tensor([1000, 1000])), eps)
        assert torch.equal(add_noise(FlowSchedule(shift), x0, eps, torch.tensor([0, 0])), x0)
        # From pure noise the velocity still tells x0, which noise itself does not.
        assert torch.allclose(x0_from_v(FlowSchedule(shift), eps - x0, eps, torch.tensor([1000, 1000])), x0, atol=1e-6)


@pytest.mark.parametrize("schedule", [VP, FlowSchedule(3.0)])
def test_arithmetic_is_float32_for_half_precision_inputs(schedule: Schedule) -> None:
    x, y = (part.bfloat16() for part in pair(2, 0, 1.0))
    t = torch.tensor([249, 749])
    for function in (x0_from_eps, eps_from_x0, x0_from_v, add_noise):
        found = function(schedule, x, y, t)
        assert found.dtype == torch.float32
        assert torch.equal(found, function(schedule, x.float(), y.float(), t))


def test_each_sample_has_its_own_timestep() -> None:
    x0, eps = pair(3, 0, 1.0)
    t = torch.tensor([0, 500, 999])
    whole = add_noise(VP, x0, eps, t)
    for i in range(3):
        assert torch.equal(whole[i : i + 1], add_noise(VP, x0[i : i + 1], eps[i : i + 1], t[i : i + 1]))


@pytest.mark.parametrize("schedule", [VP, FlowSchedule(3.0)])
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 2, 2), (24,)], ids=["tokens", "video", "vectors"])
def test_samples_have_any_number_of_dimensions(schedule: Schedule, shape: tuple[int, ...]) -> None:
    """Tokens (B, N, D) and videos (B, C, T, H, W) are treated as pictures (B, C, H, W) with the same numbers are."""
    x, y = (part.reshape(3, *shape) for part in pair(3, 0, 1.0))
    t = torch.tensor([20.0, 500.0, 980.0])
    for function in (add_noise, x0_from_eps, eps_from_x0, x0_from_v, velocity):
        found = function(schedule, x, y, t)
        assert found.shape == x.shape
        assert torch.equal(found, function(schedule, x.view(3, 2, 3, 4), y.view(3, 2, 3, 4), t).view(x.shape))
    for kind in PREDICTIONS:
        x_t = add_noise(schedule, x, y, t)
        output = output_of(schedule, kind, x, y, t)
        torch.testing.assert_close(x0_from_output(schedule, kind, output, x_t, t), x, rtol=1e-4, atol=1e-4)


def test_distribution_matching_has_any_number_of_dimensions() -> None:
    x, real, fake = torch.randn(3, 2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    flat = [part.reshape(2, 4, 3, 30) for part in (x, real, fake)]
    assert torch.equal(dm_gradient(x, real, fake), dm_gradient(*flat).view(x.shape))
    # Each sample is scaled by its own distance to the teacher.
    alone = torch.cat([dm_gradient(x[i : i + 1], real[i : i + 1], fake[i : i + 1]) for i in range(2)])
    assert torch.equal(dm_gradient(x, real, fake), alone)
    expected = (fake - real) / (x - real).abs().flatten(1).mean(1).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(alone, expected)


def test_signal_weight_is_the_root_of_alpha_bar() -> None:
    t = torch.tensor([0, 249, 999])
    weight = signal_weight(VP, t)
    assert weight.shape == (3,)
    torch.testing.assert_close(weight, DDPM.alphas_cumprod[t].sqrt())
