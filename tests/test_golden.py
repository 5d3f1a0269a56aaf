"""Loss curves of 20 iterations, held against stored ones: a change that moves them needs a line under `Numerics`.

Written anew with `FLASHDMD_WRITE_GOLDEN=1 pytest tests/test_golden.py`. On one machine the curves are equal bit for bit
(the second test); between processors the order of additions differs, so the stored ones are held to 0.1%.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.training.align import align
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.pairs import PairSampler
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.judges import reward_judge

from .test_align import origin, recipe  # noqa: F401
from .test_distill import QUIET, sam_folder, seeing  # noqa: F401

GOLDEN = Path(__file__).parent / "golden"
WATCHED_ALIGN = (
    "preference", "margin", "kl", "kept_pairs", "reward/mean", "reward/spread", "grad_norm/preference", "dm", "gan",
    "fake", "probe/brightness", "probe/reward", "probe/diversity",
)  # fmt: skip
SMALL = {"train.batch": 2, "train.micro_batch": 1, "model.precision": "fp32"}
OUTPUT = ("output_grad/dm", "output_grad/gan", "brightness/real", "brightness/student")
WATCHED = ("dm", "gan", "fake", "discriminator", "grad_norm/student", "grad_norm/fake")


def curve(name, family, sam, data, out, iterations=20):
    flags = {"train.batch": 2, "train.micro_batch": 2, "train.iterations": iterations, "model.precision": "fp32",
             "optim.warmup_images": 10}  # fmt: skip
    distill(seeing(sam, load_recipe(name, flags=flags)), family, data, out, QUIET, StopFlag())
    return [{key: row[key] for key in WATCHED if key in row} for row in read_metrics(out)]


def hold(rows, name, length):
    """Against the stored curve, or store it."""
    path = GOLDEN / f"{name}.json"
    if os.environ.get("FLASHDMD_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    expected = json.loads(path.read_text())
    assert len(rows) == len(expected) == length
    for step, (row, golden) in enumerate(zip(rows, expected, strict=True)):
        assert row == pytest.approx(golden, rel=1e-3, abs=1e-6), f"iteration {step}"


@pytest.mark.parametrize("name", ["shapes-4step", "shapes-4step-dmd2"])
def test_curve_equals_the_stored_one(name, tiny_family, sam_folder, random_data, tmp_path):  # noqa: F811
    hold(curve(name, tiny_family, sam_folder, random_data, tmp_path), name, 20)


def test_curve_of_an_alignment(tiny_family, sam_folder, random_data, origin, tmp_path):  # noqa: F811
    """What its unit tests leave open: averages, rates of its own, a guided reward, a threshold that parts the pool."""
    torch.manual_seed(6)
    reward = new_reward(tiny_family, RewardConfig(resolution=32, guidance=3.0)).requires_grad_(False)
    reward.logit_scale.fill_(math.log(60.0))
    r = recipe(
        align__reward_guidance=True, align__threshold=[0.1, 0.5], align__lr=3e-4, align__candidates=3,
        train__iterations=8, train__batch=4, train__micro_batch=2, train__average_images=18, probe__every=4,
        probe__num_prompts=2, probe__num_seeds=2,
    )  # fmt: skip
    o = Objective(r, tiny_family, tiny_family.grid(4))
    captions = ["a plain red circle above a striped blue ring", "a dotted white square over a plain red ring"]
    probe = CollapseProbe(o, captions, reward_judge(PairSampler(o, reward)))
    align(seeing(sam_folder, r), tiny_family, reward, origin, random_data, tmp_path, QUIET, StopFlag(), probe)
    rows = [{key: row[key] for key in WATCHED_ALIGN if key in row} for row in read_metrics(tmp_path)]
    assert 0 < sum(row["kept_pairs"] for row in rows) < 8
    assert len({row["reward/mean"] for row in rows}) == 8  # a pool of its own in every iteration
    assert len({row["dm"] for row in rows if "dm" in row}) == 4
    hold(rows, "align", 8)


def test_curve_of_a_recipe_in_which_nothing_is_neutral(tiny_family, sam_folder, random_data, tmp_path):  # noqa: F811
    """Crops, autoencoded real pictures, a noised input, adapters, and no factor that is one and so may be forgotten."""
    flags = SMALL | {
        "train.iterations": 8, "train.log_every": 1, "model.form": "lora", "model.lora_rank": 4, "model.lora_alpha": 12,
        "dm.weight": 0.6, "dm.guidance": 3.0, "gan.weight": 0.4, "gan.crop_px": 16, "gan.crop_margin_latents": 1,
        "gan.real": "vae_roundtrip", "gan.input": "renoise", "gan.soft_weights": True, "optim.lr_student": 3e-3,
        "optim.lr_fake": 3e-3, "optim.lr_discriminator": 3e-3, "optim.clip": 0.005,
        "optim.weight_decay": 0.3, "optim.warmup_images": 0,
    }  # fmt: skip
    distill(seeing(sam_folder, load_recipe("sdxl-4step", flags=flags)), tiny_family, random_data, tmp_path, QUIET,
            StopFlag())  # fmt: skip
    rows = [{key: row[key] for key in (*WATCHED, *OUTPUT) if key in row} for row in read_metrics(tmp_path)]
    for role in ("student", "fake"):  # the clip acts
        assert sum(row[f"grad_norm/{role}"] > 0.005 for row in rows) >= 3
    hold(rows, "everything", 8)


def test_curve_repeats_bit_for_bit(tiny_family, sam_folder, random_data, tmp_path):  # noqa: F811
    first = curve("shapes-4step", tiny_family, sam_folder, random_data, tmp_path / "a", 3)
    assert first == curve("shapes-4step", tiny_family, sam_folder, random_data, tmp_path / "b", 3)
