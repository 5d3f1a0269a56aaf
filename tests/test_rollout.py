"""Few-step sampling and backward simulation against loops written out, and against the stock scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import LCMScheduler
from torch import Tensor

from flashdmd_cli.core.grid import vp_grid
from flashdmd_cli.core.rollout import at, rollout
from flashdmd_cli.core.schedules import VPSchedule, eps_from_x0, x0_from_eps

SHAPE = (3, 2, 4, 4)
SCHEDULER = LCMScheduler.from_config(vp_grid(4).config)
SCHEDULE = VPSchedule(SCHEDULER.alphas_cumprod)
TIMESTEPS = vp_grid(4).timesteps


class Known:
    """x0 = tanh(x_t) + t / 1000, and notes what it was asked."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),) and t.dtype == torch.float32 and len(set(t.tolist())) == 1
        self.seen.append(int(t[0]))
        return x.tanh() + t[:, None, None, None] / 1000


class Noise:
    """Noise of a grid step, and which steps were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, step: int) -> Tensor:
        self.asked.append(step)
        return self.of(step)

    @staticmethod
    def of(step: int) -> Tensor:
        return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(100 + step))


def written_out(x: Tensor, start: int, stop: int | None) -> Tensor:
    """The same walk with a loop over scalars, from the betas up."""
    betas = [(math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for i in range(1000)]
    x = x.double()
    step = start
    while step != stop:
        x0 = x.tanh() + TIMESTEPS[step] / 1000
        if step == 3:
            return x0
        step += 1
        alpha_bar = math.prod(1 - beta for beta in betas[: TIMESTEPS[step] + 1])
        x = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * Noise.of(step).double()
    return x


@pytest.mark.parametrize(
    ("start", "stop", "seen"),
    [
        (0, None, [999, 749, 499, 249]),
        (0, 3, [999, 749, 499]),
        (0, 2, [999, 749]),
        (0, 1, [999]),
        (0, 0, []),
        (1, 3, [749, 499]),
        (2, None, [499, 249]),
        (3, 3, []),
        (3, None, [249]),
    ],
)
def test_walk_equals_the_loop_written_out(start: int, stop: int | None, seen: list[int]) -> None:
    denoise, noise, x = Known(), Noise(), Noise.of(0)
    found = rollout(denoise, SCHEDULE, TIMESTEPS, x, noise, start, stop)
    assert denoise.seen == seen
    # Noise is drawn for each state that is entered, and for nothing after the last x0.
    assert noise.asked == list(range(start + 1, (3 if stop is None else stop) + 1))
    torch.testing.assert_close(found.double(), written_out(x, start, stop), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_walk_stopped_and_taken_up_again_is_the_whole_walk(stop: int) -> None:
    """Backward simulation gives the very states that inference passes through."""
    x = Noise.of(0)
    whole = rollout(Known(), SCHEDULE, TIMESTEPS, x, Noise())
    halfway = rollout(Known(), SCHEDULE, TIMESTEPS, x, Noise(), stop=stop)
    assert torch.equal(rollout(Known(), SCHEDULE, TIMESTEPS, halfway, Noise(), start=stop), whole)


def test_noise_is_fresh_at_each_step() -> None:
    """States at different steps share no noise: what is left after the known x0 is taken out is uncorrelated."""
    shape = (8, 4, 16, 16)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    residues = [x]
    for step in (1, 2, 3):
        state = rollout(
            lambda x, t: torch.zeros_like(x),
            SCHEDULE,
            TIMESTEPS,
            x,
            lambda _: torch.randn(*shape, generator=generator),
            stop=step,
        )
        residues.append(state / SCHEDULE.sigma(at(TIMESTEPS[step], state))[:, None, None, None])
    correlation = torch.corrcoef(torch.stack([r.flatten() for r in residues]))
    assert (correlation - torch.eye(4)).abs().max() < 0.05
    assert all(abs(r.std() - 1) < 0.05 for r in residues)


def test_input_is_left_as_it_was() -> None:
    x = Noise.of(0)
    rollout(Known(), SCHEDULE, TIMESTEPS, x, Noise())
    assert torch.equal(x, Noise.of(0))


def test_gradient_reaches_the_denoiser_through_the_last_step() -> None:
    gain = torch.tensor(0.5, requires_grad=True)
    out = rollout(lambda x, t: gain * x, SCHEDULE, (249,), Noise.of(0), Noise())
    out.sum().backward()
    assert gain.grad is not None and gain.grad.item() == pytest.approx(Noise.of(0).sum().item(), rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_walk_equals_the_stock_scheduler(steps: int) -> None:
    """Same network, same noise: `LCMScheduler.step` over its own timesteps passes through the same states."""
    grid = vp_grid(steps)
    scheduler = LCMScheduler.from_config(grid.config)
    scheduler.set_timesteps(steps)
    theirs = torch.Generator().manual_seed(7)
    x = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(8))

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return (x + t[:, None, None, None] / 1000).sin()

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return x0_from_eps(SCHEDULE, eps(x, t), x, t)

    states = [x]
    for t in scheduler.timesteps:
        prediction = eps(states[-1], at(int(t), x))
        states.append(scheduler.step(prediction, t, states[-1], generator=theirs).prev_sample)
    for stop in range(steps + 1):
        ours = torch.Generator().manual_seed(7)
        found = rollout(
            denoise, SCHEDULE, grid.timesteps, x, lambda _, g=ours: torch.randn(*SHAPE, generator=g),
            stop=None if stop == steps else stop,
        )  # fmt: skip
        torch.testing.assert_close(found, states[stop], rtol=1e-4, atol=1e-4)


def test_an_x0_network_ends_in_its_own_answer() -> None:
    """Nothing of the input is mixed in: with noise predicted from x0, the stock scheduler returns that x0."""
    x = Noise.of(0)
    scheduler = LCMScheduler.from_config(vp_grid(1).config)
    scheduler.set_timesteps(1)
    x0 = x.tanh()
    out = scheduler.step(eps_from_x0(SCHEDULE, x0, x, at(999, x)), scheduler.timesteps[0], x).denoised
    torch.testing.assert_close(out, x0, rtol=0.0, atol=1e-5)


def test_at_is_one_float_per_sample() -> None:
    t = at(857.6923, torch.zeros(5, 1, 1, 1))
    assert t.dtype == torch.float32 and t.tolist() == pytest.approx([857.6923] * 5)
