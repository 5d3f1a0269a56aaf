"""Students of 1, 2, 4 and 8 steps, of SDXL and SD3: one whole iteration each."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flashdmd_cli.families.files import Source
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.recipes import distill_recipe

from .conftest import RandomData
from .test_distill import changed, sam_folder, seeing, weights  # noqa: F401

SETS = ["train.batch=2", "train.micro_batch=2", "gan.decode=full", "model.form=lora", "model.lora_rank=2",
        "optim.warmup_images=0", "fake.ttur=1", "model.checkpointing=false", "dm.guidance=[2, 8]"]  # fmt: skip


@pytest.fixture(scope="module", params=["tiny_folder", "tiny_sd3_folder"])
def family(request: pytest.FixtureRequest) -> Any:
    folder: Path = request.getfixturevalue(request.param)
    return family_at(folder).module.load(Source(folder), "fp32", "fp32")


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_one_iteration(steps: int, family: Any, sam_folder: Path, random_data: RandomData) -> None:
    recipe = seeing(sam_folder, distill_recipe(teacher=family.name, steps=steps, sets=SETS))
    assert (recipe.family, recipe.grid.steps) == (family.name, steps)
    state, objective = State.new(recipe, family), Objective(recipe, family, family.grid(steps))
    assert len(objective.grid) == steps
    before = weights(state.student.net)
    metrics = iteration(recipe, objective, state, random_data, 0)
    assert changed(before, state.student.net) and state.updates["student"] == 1
    assert all(metrics[name] is not None and metrics[name] == metrics[name] for name in ("dm", "gan", "fake"))
    assert metrics["grad_norm/student"] > 0 and metrics["grad_norm/fake"] > 0
