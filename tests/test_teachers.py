"""Teachers as people have them: any noise schedule and prediction, held against stock diffusers, or refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from flashdmd_cli.core.rollout import at, rollout
from flashdmd_cli.core.schedules import output_of
from flashdmd_cli.core.transitions import log_density, log_ratio, preference_margin, step_kl
from flashdmd_cli.families.noise import noise_schedule, noise_settings
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import RewardBase, load_reward, new_reward, save_reward
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.inputs.families import load_family

from .test_distill import recipe
from .test_sdxl import CAPTIONS, draw, stock_answer, unlike_teacher

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {**SDXL, "prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True}
BETAS = torch.linspace(1e-4, 2e-2, 1000).tolist()
WITH_BETAS = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and "beta_start" in inspect.signature(getattr(diffusers, name)).parameters
    if not name.startswith(("CogVideoX", "RePaint"))
)
"""Every stock scheduler over betas but CogVideoX's, which change them by a setting of their own, and RePaint's, which
is for inpainting and takes no betas from a file."""

Change = dict[str, Any]
KINDS: dict[str, Change] = {
    "epsilon": SDXL,
    "v": V,
    "v, zero terminal SNR": ZERO_SNR,
    "x0": {**SDXL, "prediction_type": "sample"},
    "x0, zero terminal SNR": {**ZERO_SNR, "prediction_type": "sample"},
    "v, betas of its own": {"trained_betas": BETAS, "prediction_type": "v_prediction"},
}


def family_with(folder: Path, scheduler: Any = None, **parts: Any) -> SDXLFamily:
    """The tiny teacher with another scheduler or another part."""
    if scheduler is not None:
        parts["scheduler"] = scheduler
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, **parts)
    return SDXLFamily(pipeline, str(folder))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tiny_folder: Path) -> SDXLFamily:
    """A teacher of every prediction and noise schedule."""
    return family_with(tiny_folder, DDIMScheduler(**KINDS[request.param], clip_sample=False))


@pytest.fixture(scope="module")
def zero_snr(tiny_folder: Path) -> SDXLFamily:
    """As community v-prediction checkpoints say it."""
    return family_with(tiny_folder, EulerDiscreteScheduler(**ZERO_SNR, timestep_spacing="trailing"))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest number."""
    assert wanted.std() > 0.01  # there is something to differ in
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=tolerance * max(1.0, float(wanted.abs().max())))


# -- noise schedules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_BETAS)
def test_any_stock_scheduler_has_its_own_noise_schedule(name: str) -> None:
    stock = getattr(diffusers, name)
    for betas in (SDXL, {**SDXL, "beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"},
                  {"trained_betas": BETAS}, {}):  # fmt: skip
        scheduler = stock.from_config(betas)
        found = noise_schedule(noise_settings(scheduler)).alphas_cumprod
        assert torch.equal(found, scheduler.alphas_cumprod), betas
    assert noise_settings(stock.from_config(SDXL))["prediction_type"] == "epsilon"


@pytest.mark.parametrize("name", WITH_BETAS)
def test_zero_terminal_snr_is_exact_whatever_the_class(name: str) -> None:
    """Some stock samplers put 2**-24 at the end, some do not know the setting; what was trained is one and the same."""
    scheduler = getattr(diffusers, name).from_config(ZERO_SNR)
    settings = noise_settings(scheduler)
    found = noise_schedule(settings).alphas_cumprod
    assert found[-1] == 0 and settings["prediction_type"] == "v_prediction"
    assert torch.equal(found, DDIMScheduler(**ZERO_SNR).alphas_cumprod)
    if "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, name)).parameters:
        assert torch.equal(found[:-1], scheduler.alphas_cumprod[:-1]) and scheduler.alphas_cumprod[-1] <= 2**-24


@pytest.mark.parametrize(("name", "betas"), [("HeunDiscreteScheduler", "exp"), ("DDPMScheduler", "sigmoid"),
                                             ("DDPMScheduler", "laplace")])  # fmt: skip
def test_betas_that_other_classes_cannot_compute_are_handed_on(name: str, betas: str, tiny_folder: Path) -> None:
    scheduler = getattr(diffusers, name)(**SDXL | {"beta_schedule": betas})
    family = family_with(tiny_folder, scheduler)
    assert torch.equal(family.schedule.alphas_cumprod, scheduler.alphas_cumprod)
    assert torch.equal(LCMScheduler.from_config(family.grid(4).config).alphas_cumprod, scheduler.alphas_cumprod)


REFUSED: dict[str, tuple[Any, str]] = {
    "EDM (Playground v2.5)": (EDMDPMSolverMultistepScheduler(), "EDMDPMSolverMultistepScheduler"),
    "EDM, Euler": (EDMEulerScheduler(), "EDMEulerScheduler"),
    "flow": (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"),
    "flow by a setting": (UniPCMultistepScheduler(**SDXL, use_flow_sigmas=True), "use_flow_sigmas"),
    "flow by its prediction": (
        DPMSolverMultistepScheduler(**SDXL, prediction_type="flow_prediction"), "flow_prediction"),
    "noise levels": (EulerDiscreteScheduler(**V, timestep_type="continuous"), "timestep_type continuous"),
    "noise from pure noise": (DDIMScheduler(**ZERO_SNR | {"prediction_type": "epsilon"}), "rescale_betas_zero_snr"),
    "another length": (HeunDiscreteScheduler(**SDXL, num_train_timesteps=500), "num_train_timesteps is 500"),
    "betas of another length": (DDIMScheduler(trained_betas=BETAS[:100]), "num_train_timesteps is 100"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_scheduler_that_cannot_be_a_teachers_is_refused_in_one_line(name: str) -> None:
    scheduler, word = REFUSED[name]
    with pytest.raises(ValueError, match=word) as told:
        noise_settings(scheduler)
    assert "\n" not in str(told.value)


def test_the_command_line_refuses_an_edm_teacher_with_exit_code_3(tiny_folder: Path, tmp_path: Path) -> None:
    family_with(tiny_folder).pipeline.save_pretrained(tmp_path / "playground")
    EDMDPMSolverMultistepScheduler().save_pretrained(tmp_path / "playground" / "scheduler")
    index = tmp_path / "playground" / "model_index.json"
    index.write_text(index.read_text().replace('"DDIMScheduler"', '"EDMDPMSolverMultistepScheduler"'))
    with pytest.raises(InputError, match="--teacher .*EDMDPMSolverMultistepScheduler") as told:
        load_family(tmp_path / "playground")
    assert told.value.exit_code == 3


# -- what the network answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [999, 749, 20, 0])
def test_x0_is_the_stock_schedulers(kind: SDXLFamily, t: int) -> None:
    x_t, cond = draw(kind, seed=t), kind.encode(CAPTIONS)
    scheduler = kind.pipeline.scheduler
    scheduler.set_timesteps(1000)
    with torch.no_grad():
        found = kind.teacher.x0(x_t, at(t, x_t), cond)
        said = stock_answer(kind.pipeline.unet, x_t, at(t, x_t), cond)
        expected = scheduler.step(said, t, x_t).pred_original_sample
    assert found.isfinite().all()
    close(found, expected)


def test_guidance_on_answers_is_guidance_on_x0(kind: SDXLFamily) -> None:
    net, x_t, cond, t = unlike_teacher(kind), draw(kind), kind.encode(CAPTIONS), torch.tensor([999.0, 499.0])
    with torch.no_grad():
        told, null = (net.x0(x_t, t, c) for c in (cond, kind.null(cond)))
        found = net.guided_x0(x_t, t, cond, 5.0)
    assert (told - null).abs().max() > 0.005
    close(found, null + 5.0 * (told - null), 3e-5)


def test_the_fake_score_learns_what_its_teacher_was_trained_on(kind: SDXLFamily) -> None:
    x0, noise, t = draw(kind), draw(kind, seed=1), torch.tensor([10, 999])
    scheduler = kind.pipeline.scheduler
    cond, x_t = kind.encode(CAPTIONS), scheduler.add_noise(x0, noise, t)
    with torch.no_grad():
        close(kind.teacher.output(x_t, t.float(), cond), stock_answer(kind.pipeline.unet, x_t, t, cond))
    wanted = {"epsilon": noise, "sample": x0, "v_prediction": scheduler.get_velocity(x0, noise, t)}
    close(output_of(kind.schedule, kind.prediction, x0, noise, t), wanted[kind.prediction])


def test_a_guided_teacher_draws_as_the_stock_pipeline(kind: SDXLFamily) -> None:
    """The whole of `--sampler ddim` against the pipeline people use, from the same noise."""
    x, cond, scheduler = draw(kind, seed=4), kind.encode(CAPTIONS), kind.pipeline.scheduler
    trailing = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    pipeline = StableDiffusionXLPipeline(**kind.pipeline.components | {"scheduler": trailing}, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        CAPTIONS, num_inference_steps=4, guidance_scale=3.0, latents=x.clone(), output_type="latent"
    ).images  # fmt: skip
    with torch.no_grad():
        ours = kind.solve(lambda x_t, t: kind.teacher.guided_x0(x_t, t, cond, 3.0), 4, x)
    close(ours, stock)


def test_the_euler_sampler_of_community_checkpoints_draws_the_same(
    zero_snr: SDXLFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its 2**-24 for alpha_bar at the end is of no matter: DDIM with the exact 0 draws what its users see."""
    x, cond = draw(zero_snr, seed=4), zero_snr.encode(CAPTIONS)
    pipeline = zero_snr.pipeline
    # Its first state is scaled to sigma 4096, which costs digits in float32.
    stock = pipeline(
        CAPTIONS, num_inference_steps=5, guidance_scale=3.0, latents=x.clone(), output_type="latent"
    ).images
    monkeypatch.setitem(zero_snr.scheduler_config, "set_alpha_to_one", True)
    with torch.no_grad():
        ours = zero_snr.solve(lambda x_t, t: zero_snr.teacher.guided_x0(x_t, t, cond, 3.0), 5, x)
    close(ours, stock, 2e-3)


# -- few steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
def test_an_exported_student_draws_the_rollout(kind: SDXLFamily, steps: int, tmp_path: Path) -> None:
    net = unlike_teacher(kind)
    kind.save_pipeline(net.merged(), tmp_path, kind.grid(steps))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(pipeline.scheduler.alphas_cumprod, kind.schedule.alphas_cumprod)
    assert pipeline.scheduler.config.prediction_type == kind.prediction
    x, cond = draw(kind, seed=5), kind.encode(CAPTIONS)
    stock = pipeline(
        CAPTIONS, num_inference_steps=steps, guidance_scale=1.0, latents=x.clone(), output_type="latent",
        generator=torch.Generator().manual_seed(6),
    ).images  # fmt: skip
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        ours = rollout(
            lambda x_t, t: net.x0(x_t, t, cond), kind.schedule, kind.grid(steps).timesteps, x,
            lambda _: torch.randn(x.shape, generator=generator),
        )  # fmt: skip
    close(ours, stock)


def test_exported_settings_survive_the_disk(zero_snr: SDXLFamily, tmp_path: Path) -> None:
    LCMScheduler.from_config(zero_snr.grid(4).config).save_pretrained(tmp_path)
    config = LCMScheduler.from_pretrained(tmp_path).config
    assert config.prediction_type == "v_prediction" and config.rescale_betas_zero_snr is True
    assert set(zero_snr.grid(4).config) <= set(LCMScheduler().config)  # diffusers drops others with a mere warning


def test_transitions_are_finite_on_a_grid_that_begins_in_pure_noise(zero_snr: SDXLFamily) -> None:
    schedule, (x0, ref, winner, loser) = zero_snr.schedule, (draw(zero_snr, seed=i) for i in range(4))
    assert schedule.alpha(at(999, x0)).eq(0).all() and schedule.sigma(at(999, x0)).eq(1).all()
    for timestep in zero_snr.grid(8).timesteps[1:]:
        t = at(timestep, x0)
        margin = preference_margin(schedule, winner, loser, x0, ref, t)
        by_ratio = log_ratio(schedule, winner, x0, ref, t) - log_ratio(schedule, loser, x0, ref, t)
        torch.testing.assert_close(margin, by_ratio, rtol=1e-3, atol=1e-3 * float(margin.abs().max()))
        assert log_density(schedule, winner, x0, t).isfinite().all() and (step_kl(schedule, x0, ref, t) > 0).all()


def test_an_iteration_from_pure_noise_moves_every_role(zero_snr: SDXLFamily, random_data: Any) -> None:
    """One step and the latent GAN: rollout, fake score and discriminator all meet alpha_bar = 0."""
    r = recipe(grid__steps=1, gan__kind="latent", gan__steps="all", dm__renoise_range=[20, 999])
    state = State.new(r, zero_snr)
    before = [[p.detach().clone() for p in role.parameters] for role in (state.student, state.fake)]
    figures = iteration(r, Objective(r, zero_snr, zero_snr.grid(1)), state, random_data)
    assert all(torch.tensor(value).isfinite() for value in figures.values()), figures
    for role, weights in zip((state.student, state.fake), before, strict=True):
        assert all(p.isfinite().all() for p in role.parameters)
        assert any(not torch.equal(a, b) for a, b in zip(weights, role.parameters, strict=True))
    o, x0 = Objective(r, zero_snr, zero_snr.grid(1)), draw(zero_snr).requires_grad_()
    draws = Draws(0, 0, range(2), zero_snr.device)
    o.dm_loss(x0, zero_snr.teacher, state.fake.net, zero_snr.encode(CAPTIONS), draws).backward()
    assert x0.grad is not None and x0.grad.isfinite().all() and x0.grad.any()


def test_a_reward_model_of_another_noise_schedule_is_refused(
    tiny_family: SDXLFamily, zero_snr: SDXLFamily, tiny_folder: Path, tmp_path: Path
) -> None:
    """Its timesteps would name other noise levels; beside its own teacher it loads, whatever the prediction."""
    for family, name in ((tiny_family, "plain"), (zero_snr, "zero")):
        save_reward(new_reward(family, RewardConfig(resolution=32)), tmp_path / name)
        assert load_reward(tmp_path / name, RewardBase.of(family)).config.resolution == 32
    load_reward(tmp_path / "plain", RewardBase.of(family_with(tiny_folder, DDIMScheduler(**V))))
    for family, name in ((zero_snr, "plain"), (tiny_family, "zero")):
        with pytest.raises(ValueError, match="another noise schedule"):
            load_reward(tmp_path / name, RewardBase.of(family))
