"""Drawing with a tiny family whose networks are known functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.schedules import VPSchedule, eps_from_x0
from flashdmd_cli.evaluation.generate import generate, picture_noise
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.runs.errors import NumericalError

CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


class TinyNet:
    """A denoiser: x0 = gain * x_t + condition; it notes the timesteps it saw, and its null condition is zero."""

    def __init__(self) -> None:
        self.gain = torch.tensor(0.1, requires_grad=True)
        self.seen: list[int] = []

    def x0(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert t.shape == (len(x_t),) and t.dtype == torch.float32
        assert not torch.is_grad_enabled()
        self.seen.append(int(t[0]))
        return self.gain * x_t + cond

    def guided_x0(self, x_t: Tensor, t: Tensor, cond: Tensor, guidance: float) -> Tensor:
        null = self.gain * x_t
        return null + guidance * (self.x0(x_t, t, cond) - null)


class TinyFamily:
    """Latents (2, 4, 4); a caption conditions by its length."""

    latent_shape = (2, 4, 4)
    scheduler_config = CONFIG
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.schedule = VPSchedule(DDIMScheduler(**CONFIG).alphas_cumprod)

    def grid(self, steps: int) -> Grid:
        return vp_grid(steps)

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.tensor([float(len(text)) for text in prompts])[:, None, None, None] / 100

    def solve(self, denoise: Any, steps: int, x: Tensor) -> Tensor:
        return SDXLFamily.solve(self, denoise, steps, x)  # type: ignore[arg-type]

    def decode(self, latents: Tensor) -> Tensor:
        return latents.mean(1, keepdim=True).repeat(1, 3, 4, 4)


CAPTIONS = ["a", "a cat", "a large dog", "birds", "x" * 20]


@pytest.mark.parametrize("sampler", ["few_step", "stochastic", "ddim"])
def test_pictures_do_not_depend_on_the_batch(sampler: Any) -> None:
    net = TinyNet()
    guidance = 1.0 if sampler == "few_step" else 3.0
    calls: list[tuple[int, int]] = []

    def draw(**changes: Any) -> Tensor:
        return generate(TinyFamily(), net, CAPTIONS, 5, sampler, 4, guidance, **changes)  # type: ignore[arg-type]

    pictures = draw(batch=2, progress=lambda done, total: calls.append((done, total)))
    assert pictures.shape == (5, 3, 16, 16) and pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1 and not pictures.requires_grad
    assert calls == [(2, 5), (4, 5), (5, 5)]
    assert torch.equal(pictures, draw(batch=5))
    alone = generate(TinyFamily(), net, CAPTIONS[3:], 5, sampler, 4, guidance, first_index=3)  # type: ignore[arg-type]
    assert torch.equal(pictures[3:], alone)
    assert not torch.equal(pictures, generate(TinyFamily(), net, CAPTIONS, 6, sampler, 4, guidance))  # type: ignore[arg-type]


def test_few_step_is_the_rollout_written_out() -> None:
    family, net = TinyFamily(), TinyNet()
    got = generate(family, net, ["abc"], 9, "few_step", 4)  # type: ignore[arg-type]
    assert net.seen == [999, 749, 499, 249]
    x = picture_noise((2, 4, 4), 9, 0, 0)[None]
    for step in range(4):
        x0 = 0.1 * x + 0.03
        if step < 3:
            bar = family.schedule.alphas_cumprod[(749, 499, 249)[step]]
            x = bar.sqrt() * x0 + (1 - bar).sqrt() * picture_noise((2, 4, 4), 9, 0, step + 1)[None]
    assert torch.allclose(got, family.decode(x0), atol=1e-6)


def test_stochastic_teacher_walks_the_same_grid_with_guidance() -> None:
    family, net = TinyFamily(), TinyNet()
    guided = generate(family, net, ["abc"], 9, "stochastic", 4, 5.0)  # type: ignore[arg-type]
    assert net.seen == [999, 749, 499, 249]
    # u + w (c - u) with this net is a caption five times as long.
    assert torch.allclose(guided, generate(family, net, ["abc" * 5], 9, "few_step", 4), atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guidance"):
        generate(family, net, ["abc"], 9, "few_step", 4, 5.0)  # type: ignore[arg-type]


def test_ddim_equals_the_stock_scheduler_fed_with_noise_predictions() -> None:
    family = TinyFamily()
    x = start = torch.stack([picture_noise((2, 4, 4), 0, i) for i in range(3)])
    scheduler = DDIMScheduler(**CONFIG, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(10)
    seen: list[int] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(int(t[0]))
        return 0.2 * x_t + 0.1

    for t in scheduler.timesteps:
        rows = t.expand(3)
        x = scheduler.step(eps_from_x0(family.schedule, 0.2 * x + 0.1, x, rows), t, x).prev_sample
    assert torch.allclose(family.solve(denoise, 10, start), x, atol=1e-5)
    assert seen == scheduler.timesteps.tolist() and len(seen) == 10
    assert seen[0] == 999


def test_noise_differs_by_seed_picture_and_step() -> None:
    draws = [picture_noise((2, 8, 8), *key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert torch.equal(draws[0], picture_noise((2, 8, 8), 0, 0, 0))
    assert all(not torch.equal(draws[0], other) for other in draws[1:])


def test_nan_is_a_numerical_error() -> None:
    net = TinyNet()
    net.gain = torch.tensor(float("nan"))
    with pytest.raises(NumericalError):
        generate(TinyFamily(), net, ["abc"], 0)  # type: ignore[arg-type]
