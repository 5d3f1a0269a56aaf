"""The suite that every family passes: its numbers are those of stock diffusers, and every loop and command runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from flashdmd_cli.core.rollout import rollout
from flashdmd_cli.core.schedules import (
    add_noise,
    eps_from_x0,
    output_of,
    velocity,
    x0_from_eps,
    x0_from_output,
    x0_from_v,
)
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.evaluation.generate import picture_noise
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.registry import FAMILIES, family_at
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.recipe import Recipe, list_recipes, load_recipe
from flashdmd_cli.runs.results import stage1_checkpoint
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.workflows import align as align_command
from flashdmd_cli.workflows.align import align
from flashdmd_cli.workflows.distill import distill
from flashdmd_cli.workflows.export import export
from flashdmd_cli.workflows.inputs.drawers import find_model
from flashdmd_cli.workflows.inputs.families import hush, load_family
from flashdmd_cli.workflows.inputs.kinds import is_exported
from flashdmd_cli.workflows.inputs.teachers import Parts, find_source
from flashdmd_cli.workflows.prepare import prepare, prepare_shapes
from flashdmd_cli.workflows.sample import sample

from .original import original, write_original
from .test_distill import sam_folder  # noqa: F401

CAPTIONS = ["a plain red circle above a striped blue ring", "a dotted white square left of a plain green triangle"]
CAPTION = CAPTIONS[0]
FOLDERS = {"sdxl": "tiny_folder", "sd3": "tiny_sd3_folder", "sd15": "tiny_sd15_folder", "sd21": "tiny_sd21_folder"}
"""Name of a tiny teacher -> fixture with its folder; sd21 is Stable Diffusion 2 with v-prediction, family sd15."""
NO_T5: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}


@dataclass(frozen=True)
class Case:
    """A tiny teacher, as this package and as stock diffusers read it."""

    facts: Facts
    folder: Path
    family: Any
    stock: Any

    @property
    def is_flow(self) -> bool:
        return isinstance(self.stock.scheduler, FlowMatchEulerDiscreteScheduler)

    def stock_pipeline(self, folder: Path) -> Any:
        """A pipeline folder as its users open it."""
        pipeline = DiffusionPipeline.from_pretrained(folder, **(NO_T5 if self.facts.name == "sd3" else {}))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def stock_outputs(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The stock denoiser's output for `CAPTIONS` and for the pipeline's own unconditional input."""
        pipeline = self.stock
        if self.facts.name == "sd3":
            text, nothing, pooled, none = pipeline.encode_prompt(CAPTIONS, CAPTIONS, CAPTIONS)
            return pipeline.transformer(x_t, text, pooled, t).sample, pipeline.transformer(x_t, nothing, none, t).sample
        if self.facts.name == "sdxl":
            text, nothing, pooled, none = pipeline.encode_prompt(CAPTIONS)
            ids = torch.tensor([32.0, 32, 0, 0, 32, 32]).repeat(2, 1)
            more: Sequence[Any] = [{"text_embeds": each, "time_ids": ids} for each in (pooled, none)]
        else:
            text, nothing = pipeline.encode_prompt(CAPTIONS, "cpu", 1, True)
            more = (None, None)
        found = [
            pipeline.unet(x_t, t, encoder_hidden_states=each, added_cond_kwargs=added).sample
            for each, added in zip((text, nothing), more, strict=True)
        ]
        return found[0], found[1]

    def stock_x0(self, output: Tensor, x_t: Tensor, t: int) -> Tensor:
        """The clean sample that the teacher's scheduler computes from an output."""
        if self.is_flow:  # Euler's method in one step to sigma 0
            return x_t - t / 1000 * output
        scheduler: Any = DDIMScheduler.from_config(self.stock.scheduler.config, clip_sample=False)
        scheduler.set_timesteps(1000)
        return scheduler.step(output, t, x_t).pred_original_sample

    def noise(self, seed: int = 0) -> Tensor:
        return torch.randn(2, *self.family.latent_shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=FOLDERS)
def case(request: pytest.FixtureRequest) -> Case:
    hush()
    folder: Path = request.getfixturevalue(FOLDERS[request.param])
    facts = family_at(folder)
    pipeline = Case(facts, folder, None, None).stock_pipeline(folder)
    return Case(facts, folder, load_family(folder), pipeline)


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("trains" in request.node.name):
        yield


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance`, relative to the largest number."""
    assert wanted.std() > 1e-3  # something that can differ
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * max(1.0, float(wanted.abs().max())))


def test_every_registered_family_is_in_this_suite(request: pytest.FixtureRequest) -> None:
    found = {family_at(request.getfixturevalue(fixture)).name for fixture in FOLDERS.values()}
    assert found == set(FAMILIES)
    for facts in FAMILIES.values():
        recipes = facts.recipes
        named = {recipes.distill, *recipes.distill_steps.values(), *recipes.distill_adapters.values()}
        assert named <= set(list_recipes()) and facts.hub_id in facts.licenses
        for name in named:
            assert (load_recipe(name).family, load_recipe(name).teacher) == (facts.name, facts.name)


def test_noise_velocity_x0_and_score_are_computed_from_each_other(case: Case) -> None:
    family, x0, eps = case.family, case.noise(), case.noise(1)
    schedule, t = family.schedule, torch.tensor([35.0, 900.0])
    x_t, v = add_noise(schedule, x0, eps, t), velocity(schedule, x0, eps, t)
    close(x0_from_eps(schedule, eps, x_t, t), x0, 1e-4)
    close(eps_from_x0(schedule, x0, x_t, t), eps, 1e-4)
    close(x0_from_v(schedule, v, x_t, t), x0, 1e-4)
    close(velocity(schedule, x0, eps_from_x0(schedule, x0, x_t, t), t), v, 1e-4)
    target = output_of(schedule, family.prediction, x0, eps, t)
    assert torch.equal(target, eps if family.prediction == "epsilon" else v)
    close(x0_from_output(schedule, family.prediction, target, x_t, t), x0, 1e-4)
    # The score of p(x_t | x0), from noise and from x0.
    alpha, sigma = (each.view(2, 1, 1, 1) for each in (schedule.alpha(t), schedule.sigma(t)))
    close((alpha * x0 - x_t) / sigma**2, -eps / sigma, 1e-4)


@pytest.mark.parametrize("t", [999, 749, 20])
def test_noise_x0_and_guidance_are_those_of_diffusers(t: int, case: Case) -> None:
    family, x0, eps, times = case.family, case.noise(), case.noise(1), torch.full((2,), t)
    scheduler = case.stock.scheduler
    if case.is_flow:
        t = round(float(scheduler.timesteps[1000 - t - 1]), 4)  # type: ignore[assignment]
        times = torch.full((2,), float(t))
        expected = scheduler.scale_noise(x0, scheduler.timesteps[(scheduler.timesteps - t).abs().argmin()][None], eps)
    else:
        expected = scheduler.add_noise(x0, eps, times)
    x_t = add_noise(family.schedule, x0, eps, times.float())
    close(x_t, expected)
    cond = family.encode(CAPTIONS)
    c, u = case.stock_outputs(x_t, times)
    close(family.teacher.x0(x_t, times.float(), cond), case.stock_x0(c, x_t, t))
    assert (c - u).abs().max() > 1e-4  # else any form of guidance would pass
    for guidance in (0.0, 5.0):
        x0s = family.teacher.guided_x0(x_t, times.float(), cond, guidance)
        close(x0s, case.stock_x0(u + guidance * (c - u), x_t, t))


def test_guidance_takes_one_call_of_the_teacher(case: Case) -> None:
    family, x_t, t = case.family, case.noise(), torch.tensor([900.0, 100.0])
    cond, rows = family.encode(CAPTIONS), []
    hook = family.base.net.register_forward_hook(lambda module, args, output: rows.append(len(output.sample)))
    whole = family.teacher.guided_x0(x_t, t, cond, 3.0)
    assert rows == [4]
    for i in (0, 1):  # each sample at its own time, for its own prompt
        one = slice(i, i + 1)
        close(family.teacher.guided_x0(x_t[one], t[one], cond.rows(one), 3.0), whole[one], 1e-4)
    hook.remove()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_grid_is_that_of_the_exported_scheduler(steps: int, case: Case) -> None:
    import diffusers

    grid = case.family.grid(steps)
    scheduler = getattr(diffusers, grid.scheduler).from_config(grid.config)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == pytest.approx(list(grid.timesteps), abs=1e-3)
    assert len(grid) == steps and case.facts.module.grid(steps).scheduler == grid.scheduler
    first = case.family.schedule.sigma(torch.tensor([grid.timesteps[0]]))
    assert float(first) > 0.995
    if not case.is_flow:
        assert torch.equal(scheduler.alphas_cumprod, case.family.schedule.alphas_cumprod)
        assert torch.equal(scheduler.alphas_cumprod, case.stock.scheduler.alphas_cumprod)
    times = case.family.schedule.sample(torch.linspace(0, 0.999, 50), 20, 980)
    assert 20 <= float(times.min()) and float(times.max()) <= 999 and bool((times.diff() >= 0).all())


def test_embeddings_have_the_shapes_that_the_folder_says(case: Case) -> None:
    family, sizes = case.family, case.facts.module.dimensions(case.folder)
    text = family.embed(CAPTIONS)
    assert {name: tuple(rows.shape) for name, rows in text.items()} == {n: (2, *s) for n, s in sizes.text.items()}
    assert (sizes.latents, sizes.resolution) == (family.latent_shape, family.resolution) == ((4, 8, 8), 32)
    cond = family.conditioning(text)
    again, null = family.encode(CAPTIONS), family.null(cond)
    assert set(cond) == set(null) == set(again) and cond.batch == null.batch == 2
    for name in cond:
        assert torch.equal(cond[name], again[name]) and cond[name].shape == null[name].shape
        assert not cond[name].requires_grad
    assert (text["context"][0] - text["context"][1]).abs().max() > 0.01
    turned = Conditioning.cat([cond.rows(slice(1, 2)), cond.rows(slice(0, 1))])
    assert all(torch.equal(turned[name], cond[name].flip(0)) for name in cond)
    assert len(family.tokenizers) == len(case.facts.tokenizers)
    if case.facts.name != "sdxl":
        with pytest.raises(Unfit, match="model.micro_conditioning"):
            family.sized(cond, torch.zeros(2, 6))


def test_released_encoders_leave_the_embeddings_that_are_needed(case: Case) -> None:
    family = load_family(case.folder)
    wanted = {prompt: family.encode([prompt]) for prompt in (CAPTION, "")}
    family.release_encoders([CAPTION])
    assert all(getattr(family.pipeline, name) is None for name in family.encoders)
    for prompt, cond in wanted.items():
        assert all(torch.equal(family.encode([prompt])[name], cond[name]) for name in cond)
    with pytest.raises(KeyError):
        family.encode(["another prompt"])


def test_features_are_a_map_and_trains_through(case: Case) -> None:
    family, x, t = case.family, case.noise().requires_grad_(), torch.tensor([900.0, 20.0])
    (features,) = family.teacher.features(x, t, family.encode(CAPTIONS))
    assert (features.shape[0], features.shape[1]) == (2, *family.tap_widths) and features.shape[2] == features.shape[3]
    features.square().sum().backward()
    assert x.grad is not None and bool(x.grad.flatten(1).any(1).all())


def test_pictures_are_encoded_and_decoded_as_the_stock_pipeline_does(case: Case) -> None:
    family, vae = case.family, case.stock.vae
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, latents = vae.encode(pictures).latent_dist.mean, family.encode_pictures(pictures)
    close(latents, (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor)
    close(family.decode(latents), vae.decode(mean).sample, 1e-4)


def test_the_teachers_sampler_is_the_stock_pipeline(case: Case) -> None:
    family, x, cond = case.family, case.noise(4), case.family.encode(CAPTIONS)
    pipeline = case.stock
    if not case.is_flow:  # the pipeline's own solver may be of higher order; `solve` is DDIM
        trailing = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False)
        pipeline = type(pipeline)(**pipeline.components | {"scheduler": trailing}, **more_options(case))
        pipeline.set_progress_bar_config(disable=True)
    found = family.solve(lambda x, t: family.teacher.guided_x0(x, t, cond, 3.0), 4, x)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0}
    close(found, pipeline(CAPTIONS, latents=x.clone(), output_type="latent", **options).images, 1e-4)
    pictures = pipeline(CAPTIONS, latents=x.clone(), output_type="pt", **options).images
    close((family.decode(found) / 2 + 0.5).clamp(0, 1), pictures, 1e-3)


def more_options(case: Case) -> dict[str, Any]:
    return {"sdxl": {"add_watermarker": False}, "sd15": {"requires_safety_checker": False}}.get(case.facts.name, {})


@pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (2, 1.0), (8, 0.0)])
def test_the_exported_pipeline_draws_the_rollout(
    steps: int, guidance: float, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, x, cond, grid = case.family, case.noise(5), case.family.encode(CAPTIONS), case.family.grid(steps)
    net = family.base.copy(trainable=False)
    for number, parameter in enumerate(net.net.parameters()):
        parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    family.save_pipeline(net.net, tmp_path, grid)
    fresh = [case.noise(10 + i) for i in range(steps)]
    replace_noise(case, monkeypatch, fresh)
    pipeline = case.stock_pipeline(tmp_path)
    options = {"num_inference_steps": steps, "guidance_scale": guidance}
    drawn = pipeline(CAPTIONS, latents=x.clone(), output_type="pt", **options).images
    x0 = rollout(lambda x, t: net.view().x0(x, t, cond), family.schedule, grid.timesteps, x, lambda i: fresh[i - 1])
    close((family.decode(x0) / 2 + 0.5).clamp(0, 1), drawn, 1e-3)
    assert ((drawn > 0) & (drawn < 1)).float().mean() > 0.5 and (drawn[0] - drawn[1]).abs().max() > 0.02
    again = load_family(tmp_path)
    assert again.grid(steps) == grid and case.facts.module.is_student(tmp_path)
    assert pipeline.scheduler.config.get("prediction_type", family.prediction) == family.prediction
    for path in tmp_path.rglob("*.json"):
        assert str(case.folder) not in path.read_text() and str(tmp_path) not in path.read_text()


def replace_noise(case: Case, monkeypatch: pytest.MonkeyPatch, noise: Sequence[Tensor]) -> None:
    """Let the stock scheduler of students add these tensors: pipelines of flow matching give it no generator."""
    fresh, name = iter(noise), "scheduling_flow_match_lcm" if case.is_flow else "scheduling_lcm"
    monkeypatch.setattr(f"diffusers.schedulers.{name}.randn_tensor", lambda *args, **kwargs: next(fresh))


def test_a_student_trains_is_saved_and_is_read_frozen(case: Case, tmp_path: Path) -> None:
    family = case.family
    view, before = family.base.copy().view(), [p.clone() for p in family.teacher.parameters]
    x, t, cond = case.noise(), torch.tensor([999.0, 249.0]), family.encode(CAPTIONS)
    view.x0(x, t, cond).square().sum().backward()
    torch.optim.SGD(view.parameters, lr=1e-3).step()
    assert all(torch.equal(p, old) for p, old in zip(family.teacher.parameters, before, strict=True))
    assert any(not torch.equal(p, old) for p, old in zip(view.parameters, before, strict=True))
    family.save_network(view.merged(), tmp_path / "net")
    back = family.load_student(tmp_path / "net")
    assert not back.base.net.training and not any(p.requires_grad for p in back.parameters)
    close(back.x0(x, t, cond), view.x0(x, t, cond).detach())
    for path in tmp_path.rglob("*.json"):
        assert str(case.folder) not in path.read_text() and str(tmp_path) not in path.read_text()


def test_one_file_in_the_original_layout_is_the_same_teacher(case: Case, tmp_path: Path) -> None:
    """Configurations, tokenizers and schedule come from a folder whose weights are absent; the rest from the file."""
    path = write_original(case.stock, tmp_path / "model.safetensors")
    config = shutil.copytree(case.folder, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    source = find_source(str(path), Parts(teacher_config=str(config)))
    assert source == Source(path, config) and family_at(path) is case.facts
    family, x, t = load_family(source), case.noise(), torch.tensor([900.0, 20.0])
    for name, value in case.family.teacher.weights().items():
        assert torch.equal(value, family.teacher.weights()[name]), name
    cond, expected = family.encode(CAPTIONS), case.family.encode(CAPTIONS)
    assert all(torch.equal(cond[name], expected[name]) for name in expected)
    close(family.decode(family.teacher.x0(x, t, cond)), case.family.decode(case.family.teacher.x0(x, t, cond)))
    # The default configuration is the one of the family's original teacher, which is not on this machine.
    with pytest.raises(InputError, match=f"^--teacher-config {case.facts.hub_id}: .*not on this machine"):
        find_source(str(path))
    held = original(case.stock)
    for name in ("model.diffusion_model.", "first_stage_model.", *case.facts.text_marks):
        damaged = dict(held)
        del damaged[next(key for key in held if key.startswith(name) and key.endswith("bias"))]
        save_file(damaged, path)
        with pytest.raises(InputError, match=f"^--teacher {path}: .* is missing"):
            load_family(source)


def test_a_file_and_the_configurations_of_another_family_are_refused(
    request: pytest.FixtureRequest, tiny_sd15_folder: Path, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    pipeline = load_family(tiny_sd15_folder).pipeline  # type: ignore[attr-defined]
    path = write_original(pipeline, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"^--teacher-config .*: has no unet/config.json") as caught:
        find_source(str(path), Parts(teacher_config=str(tiny_sd3_folder)))
    assert "StableDiffusionPipeline" in caught.value.hint
    with pytest.raises(InputError, match=r"^--teacher-config .*: is of the family sdxl, .* of sd15"):
        find_source(str(path), Parts(teacher_config=str(request.getfixturevalue("tiny_folder"))))


# -- loops and commands -----------------------------------------------------------------------------------------------


class LikesBright:
    """A reward model without weights: the mean of the latents. The loop needs no more of one."""

    timesteps, is_half = (0.0, 1000.0), False

    def encode(self, prompts: Sequence[str]) -> Prompts:
        return Prompts(len(prompts))

    def score(self, latents: Tensor, t: Tensor, text: Any, outside: str = "refuse", guided: bool = True) -> Tensor:
        return latents.flatten(1).mean(1) * 50

    def to(self, device: Any) -> LikesBright:
        return self


@dataclass(frozen=True)
class Prompts:
    num: int

    def __len__(self) -> int:
        return self.num

    def repeat(self, times: int) -> Prompts:
        return Prompts(self.num * times)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "shards"
    prepare_shapes(folder, num=8)
    return folder


@pytest.fixture(scope="module")
def data(case: Case, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the embedded world at this teacher's size, with its latents and embeddings cached."""
    out = tmp_path_factory.mktemp("data") / "data"
    prepare(shards, out, teacher=str(case.folder), cache=("latents", "text"), duplicates="keep")
    return out


def recipe(case: Case, base: str, **flags: object) -> Recipe:
    sets = {"family": case.facts.name, "teacher": str(case.folder), "train.batch": 2, "train.micro_batch": 2,
            "train.iterations": 1, "train.preview_every": 100, "optim.lr_student": 0.01, "fake.ttur": 1,
            "optim.warmup_images": 0, "model.lora_rank": 2, "model.lora_alpha": 2}  # fmt: skip
    return load_recipe(base, [], sets | {key.replace("__", "."): value for key, value in flags.items()})


@pytest.mark.parametrize(
    ("case", "form"),
    [("sdxl", "full"), ("sdxl", "lora"), ("sd3", "full"), ("sd3", "lora"), ("sd15", "full"), ("sd15", "lora"),
     ("sd21", "lora")],
    indirect=["case"],
)  # fmt: skip
def test_every_loop_trains_and_the_stock_pipeline_draws_the_same(
    form: str,
    case: Case,
    data: Path,
    sam_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`distill`, `align`, `sample` and `export`; the pixel GAN with all weights, the latent one with adapters."""
    base = {"full": "shapes-4step", "lora": "shapes-4step-dmd2"}[form]
    stage1 = recipe(case, base, model__form=form, gan__sam=str(sam_folder))
    made = distill(stage1, data, tmp_path / "student")
    assert (made.family, made.step, made.grid.scheduler) == (case.facts.name, 1, case.family.grid(4).scheduler)
    (row,) = read_metrics(tmp_path / "student")
    assert row["dm"] > 0 and row["grad_norm/student"] > 0 and row["grad_norm/fake"] > 0 and row["discriminator"] > 0

    exported = export(tmp_path / "student", tmp_path / "pipeline")
    assert read_manifest(exported.out).kind == "export" and is_exported(exported.out) and not is_exported(case.folder)
    pipeline = case.stock_pipeline(exported.out)
    drawer = find_model(str(tmp_path / "student")).load()
    shape = drawer.family.latent_shape
    replace_noise(case, monkeypatch, [picture_noise(shape, 0, 0, step)[None] for step in range(1, 5)])
    x = picture_noise(shape, 0, 0)[None]
    drawn = pipeline(CAPTION, num_inference_steps=4, guidance_scale=0.0, latents=x, output_type="pt").images
    close((drawer.draw([CAPTION], 0) / 2 + 0.5).clamp(0, 1), drawn, 1e-3)
    assert 0.3 < ((drawn > 0) & (drawn < 1)).float().mean()
    sample([CAPTION], tmp_path / "student", tmp_path / "drawn")
    (path,) = (tmp_path / "drawn").rglob("0000.png")
    assert np.abs(np.asarray(Image.open(path)) / 255.0 - drawn[0].permute(1, 2, 0).numpy()).max() < 0.5 / 255 + 1e-3

    monkeypatch.setattr(align_command, "load_reward_model", lambda folder, family: LikesBright())
    flags = {"align.reward": str(tmp_path), "align.threshold": [0.0, 0.0], "align.candidates": 2, "probe.every": 100,
             "probe.num_prompts": 2, "probe.num_seeds": 2,
             "train.iterations": 1, "train.preview_every": 100, "align.rl_ratio": 1}  # fmt: skip
    align(load_recipe("align/shapes", [], flags, stage1), stage1_checkpoint(tmp_path / "student"),
          tmp_path / "aligned", data=data)  # fmt: skip
    (row,) = read_metrics(tmp_path / "aligned")
    assert row["pairs"] and row["grad_norm/preference"] > 0


def test_a_recipe_of_another_family_is_refused(case: Case, data: Path, tmp_path: Path) -> None:
    other = next(name for name in FAMILIES if name != case.facts.name)
    with pytest.raises(UsageError, match=f"family: is {other}, but the teacher .* is of the family {case.facts.name}"):
        distill(recipe(case, "shapes-4step", family=other), data, tmp_path / "student")
    assert not (tmp_path / "student").exists()
