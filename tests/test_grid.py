"""The few-step grid is a scheduler: what the stock class returns when it is configured as exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from flashdmd_cli.core.grid import vp_grid

EXPECTED = {
    1: [999],
    2: [999, 499],
    4: [999, 749, 499, 249],
    8: [999, 874, 749, 624, 499, 374, 249, 124],
}


@pytest.mark.parametrize("steps", EXPECTED)
def test_grid_and_stock_scheduler_agree(steps: int, tmp_path: Path) -> None:
    grid = vp_grid(steps)
    assert list(grid.timesteps) == EXPECTED[steps] and len(grid) == steps
    assert grid.scheduler == "LCMScheduler"
    LCMScheduler.from_config(grid.config).save_pretrained(tmp_path)
    scheduler = LCMScheduler.from_pretrained(tmp_path)  # as a user gets it
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == EXPECTED[steps]


def test_one_exported_scheduler_serves_every_step_count() -> None:
    """The configuration does not depend on the step count, so a folder cannot hold one for another student."""
    assert len({str(vp_grid(steps).config) for steps in EXPECTED}) == 1


def test_no_setting_is_unknown_to_the_scheduler() -> None:
    """diffusers drops unknown keys with a mere warning."""
    config = vp_grid(4).config
    assert config.items() <= dict(LCMScheduler.from_config(config).config).items()
    assert set(config) <= set(LCMScheduler().config)


def test_default_scheduler_would_sample_another_grid() -> None:
    default = LCMScheduler()
    default.set_timesteps(4)
    assert default.timesteps.tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize("steps", [-1, 0, 3, 5, 16])
def test_other_step_counts_raise(steps: int) -> None:
    with pytest.raises(ValueError, match=f"not {steps}"):
        vp_grid(steps)


@pytest.mark.parametrize("steps", EXPECTED)
def test_boundary_scalings_are_off(steps: int) -> None:
    scheduler = LCMScheduler.from_config(vp_grid(steps).config)
    for timestep in EXPECTED[steps]:
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        assert abs(c_skip) < 1e-12 and abs(c_out - 1) < 1e-12
        # The default passes 1e-6 as well at these timesteps; only a tighter bound tells the two apart.
        assert LCMScheduler().get_scalings_for_boundary_condition_discrete(timestep)[0] > 1e-9


def test_schedule_is_sdxls_unless_the_teacher_says_otherwise() -> None:
    sdxl = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours = LCMScheduler.from_config(vp_grid(4).config)
    assert torch.equal(ours.alphas_cumprod, sdxl.alphas_cumprod)
    betas = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear"}
    ours = LCMScheduler.from_config(vp_grid(4, betas).config)
    assert torch.equal(ours.alphas_cumprod, DDIMScheduler(**betas).alphas_cumprod)
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == EXPECTED[4]


def test_teacher_cannot_change_what_makes_the_grid() -> None:
    """A whole scheduler configuration handed over does not switch off the exact grid."""
    theirs = {**LCMScheduler().config, "original_inference_steps": 50, "timestep_scaling": 10.0, "clip_sample": True}
    config = vp_grid(4, theirs).config
    assert (config["original_inference_steps"], config["timestep_scaling"], config["clip_sample"]) == (8, 1e6, False)
