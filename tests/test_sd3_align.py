"""Stage 2 with SD3: one preference step against the velocity form of the method, and the command from end to end."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline

from flashdmd_cli.families.reward import RewardDesign
from flashdmd_cli.families.sd3.family import SD3Family
from flashdmd_cli.families.sd3.reward import new_reward, save_reward
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.training.align import preference_step
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.networks import Stage1
from flashdmd_cli.training.pairs import PairSampler
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective

from .conftest import SD3_SHIFT as SHIFT
from .conftest import RandomData
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

CAPTION = "a plain red circle above a striped blue ring"  # of RandomData
BEFORE = 7
"""Iterations of stage 1."""


@pytest.fixture(scope="module")
def family(tiny_sd3_folder: Path) -> SD3Family:
    return SD3Family.load(tiny_sd3_folder)


def perturbed(net: Any, seed: int, size: float) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize("guided", [True, False])
def test_a_preference_step_is_that_of_the_velocity_form(
    guided: bool, family: SD3Family, tiny_sd3_folder: Path, random_data: RandomData
) -> None:
    """Flow transition N((1 - s') x0, s'^2), so H = -((1 - s') / s') s <eps_w - eps_l, v - v_ref>."""
    k, batch, beta = 3, 2, 2e3
    flags = {"model.form": "full", "model.precision": "fp32", "gan.kind": "none", "dm.steps": "all",
             "train.batch": batch, "train.micro_batch": 1, "align.candidates": k, "align.beta": beta,
             "align.threshold": [0.0, 0.0], "align.reward_guidance": guided, "train.seed": 3}  # fmt: skip
    recipe = load_recipe("align/sd3", ["align.rl_ratio=null"], flags)
    torch.manual_seed(1)
    reward = new_reward(family, RewardDesign((1, 976), "adapters", False, 7.5, 2, 2.0)).requires_grad_(False)
    reward.logit_scale.fill_(math.log(2000.0))
    old = family.base.copy(trainable=False)
    perturbed(old.net, 1, 0.02)
    stage1 = Stage1(old.view(), None, None, BEFORE)
    state = State.new(recipe, family, stage1)
    perturbed(state.student.net.base.net, 2, 0.02)

    stock = StableDiffusion3Pipeline.from_pretrained(tiny_sd3_folder, text_encoder_3=None, tokenizer_3=None)
    student, reference = copy.deepcopy(stock.transformer), copy.deepcopy(stock.transformer)
    student.load_state_dict(state.student.net.base.net.state_dict())
    reference.load_state_dict(old.net.state_dict())
    texts = [CAPTION] * batch
    context, _, pooled, _ = stock.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False)
    draws = Draws(3, BEFORE, range(batch), torch.device("cpu"))
    sigmas = [SHIFT * tau / (1 + (SHIFT - 1) * tau) for tau in (1.0, 0.75, 0.5)]
    z, margins, kls, spread = draws.normal("preference/z", (4, 8, 8)), [], [], []
    for index in (0, 1):
        s, after = sigmas[index], sigmas[index + 1]
        times = torch.full((batch,), 1000 * s)
        v = student(z, context, pooled, times).sample
        v_ref = reference(z, context, pooled, times).sample.detach()
        eps = draws.normal(f"preference/eps/{index}", (k, 4, 8, 8))
        states = (1 - after) * (z - s * v.detach())[:, None] + after * eps
        with torch.no_grad():
            text = reward.encode(texts).repeat(k)
            at_next = torch.full((batch * k,), 1000 * after)
            scores = reward.score(states.flatten(0, 1), at_next, text, guided=guided).view(batch, k)
        rows, best, worst = torch.arange(batch), scores.argmax(1), scores.argmin(1)
        spread.append(scores.std(1))
        product = ((eps[rows, best] - eps[rows, worst]) * (v - v_ref)).sum((1, 2, 3))
        margins.append(-(1 - after) / after * s * product)
        kls.append(0.5 * ((1 - after) / after * s) ** 2 * (v - v_ref).detach().square().sum((1, 2, 3)))
        z = states[rows, draws.choice(f"preference/next/{index}", k)]
    size = 4 * 8 * 8
    loss = -F.logsigmoid(beta * torch.cat(margins) / size).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()

    objective = Objective(recipe, family, family.grid(4))
    found = preference_step(recipe, objective, PairSampler(objective, reward), state, random_data, stage1)
    assert found["pairs"] == 4 and found["kept_pairs"] == 1 and 0.1 < loss.item() < 5 and norm > 1e-3
    expected = {
        "preference": loss, "margin": torch.cat(margins).mean() / size, "kl": torch.cat(kls).mean() / size,
        "reward/spread": torch.cat(spread).mean(), "grad_norm/preference": norm,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name


def _reward(folder: Path, teacher: Path) -> Path:
    torch.manual_seed(0)
    model = new_reward(SD3Family.load(teacher), RewardDesign((1, 976), "adapters", False, None, 2, 2.0))
    save_reward(model, folder)
    return folder


@pytest.mark.parametrize("form", ["full", "lora"])
def test_from_a_student_to_an_aligned_one(form: str, world: Path, shipped: Path) -> None:
    small = ["--set", "train.batch=2", "--set", "train.micro_batch=2", "--set", "train.save_every=2",
             "--set", "train.preview_every=null"]  # fmt: skip
    assert run("prepare-data", "shapes", "--num", 4).exit_code == 0
    made = run("distill", "--teacher", "shapes-sd3", *small, "--iterations", 2, "--set", f"model.form={form}",
               "--set", "model.lora_rank=2", "--out", "student")  # fmt: skip
    assert made.exit_code == 0, made.output
    reward = _reward(world / "reward", shipped / "shapes-sd3")
    words = ["align", "--from", "student", *small, "--set", "align.threshold=[0, 0]", "--set", "probe.every=2",
             "--set", "probe.num_prompts=2", "--set", "probe.num_seeds=2", "--rl-ratio", 2]  # fmt: skip
    result = run(*words, "--reward", reward, "--iterations", 2, "--out", "aligned")
    assert result.exit_code == 0, result.output
    manifest = json.loads((world / "aligned" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["family"], manifest["recipe"]["name"]) == ("align", "sd3", "align-shapes-sd3")
    assert manifest["updates"] == {"student": 1, "fake": 2, "discriminator": 2, "preference": 2}
    rows = read_metrics(world / "aligned")
    assert all(row["grad_norm/preference"] > 0 for row in rows) and "probe/reward" in rows[-1]
    assert run("export", "--from", "aligned", "--out", "stock").exit_code == 0
    if form == "lora":
        return
    # The probe scores with another noise level than any it was trained at: refused before anything runs.
    current = ["--set", "align.reward_timestep=current", "--out", "c", "--iterations", 1, "--reward"]
    result = run(*words, *current, reward)
    assert result.exit_code == 2 and "would score at timestep 1000" in result.stderr.strip().splitlines()[-1]
    fails(run(*words, "--reward", world / "none", "--iterations", 1, "--quiet", "--out", "d"), 3, "no such folder")
