"""Every shipped recipe of SDXL, run for two iterations on a tiny one: its defaults are tried, not only parsed."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import math

import pytest

from flashdmd_cli.runs.recipe import Recipe, list_recipes, load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.training.align import align
from flashdmd_cli.training.distill import distill

from .test_align import origin, reward  # noqa: F401
from .test_distill import QUIET, sam_folder  # noqa: F401

STAGE_1 = [name for name in list_recipes() if name.startswith("sdxl-")]
STAGE_2 = [name for name in list_recipes() if name.startswith("align/sdxl")]
SIZES = {"train.batch": 2, "train.micro_batch": 1, "train.iterations": 2, "train.log_every": 1, "gan.crop_px": 16}


@pytest.fixture
def small(tiny_family, sam_folder, monkeypatch):
    """A shipped recipe with nothing but sizes changed, at the precision that it says."""

    def load(name: str) -> Recipe:
        r = load_recipe(name, flags=SIZES | {"gan.sam": str(sam_folder)})
        monkeypatch.setattr(tiny_family, "precision", r.model.precision)
        return r

    return load


def test_there_are_recipes():
    assert {"sdxl-4step", "sdxl-8step", "sdxl-4step-lora", "sdxl-4step-dmd2"} <= set(STAGE_1)
    assert {"align/sdxl", "align/sdxl-8step", "align/sdxl-lora"} <= set(STAGE_2)


@pytest.mark.parametrize("name", STAGE_1)
def test_stage_1(name, small, tiny_family, random_data, tmp_path):
    r = small(name)
    state = distill(r, tiny_family, random_data, tmp_path, QUIET, StopFlag())
    assert (r.gan.decode, r.gan.kind) == ("crop", "latent" if "dmd2" in name else "pixel")
    assert state.updates == {"student": 1 if r.ttur > 1 else 2, "fake": 2, "discriminator": 2}
    assert not any(role.bad_updates for role in state.roles)
    assert all(math.isfinite(value) for row in read_metrics(tmp_path) for value in row.values())


@pytest.mark.parametrize("name", STAGE_2)
def test_stage_2(name, small, tiny_family, reward, origin, random_data, tmp_path):
    r = small(name)
    state = align(r, tiny_family, reward, origin, random_data, tmp_path, QUIET, StopFlag())
    assert state.updates["preference"] == 2 and not any(role.bad_updates for role in state.roles)
    assert state.updates["student"] == (0 if r.align.rl_ratio is None else 1 if r.align.rl_ratio > 1 else 2)
    assert all(math.isfinite(value) for row in read_metrics(tmp_path) for value in row.values())
