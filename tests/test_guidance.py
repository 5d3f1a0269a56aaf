"""The teacher's guidance as a range, for SDXL and SD3: one number per picture, which does not depend on the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flashdmd_cli.core import losses
from flashdmd_cli.core.schedules import add_noise
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.recipe import dump_recipe, load_recipe
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.steps import Objective

CPU = torch.device("cpu")
SETS = ["dm.guidance=[2, 8]", "gan.kind=none", "dm.steps=all"]


@pytest.fixture(params=["tiny_folder", "tiny_sd3_folder"])
def family(request: pytest.FixtureRequest) -> Any:
    folder: Path = request.getfixturevalue(request.param)
    return family_at(folder).module.load(Source(folder), "fp32", "fp32")


def test_every_picture_has_its_own_guidance(family: Any) -> None:
    recipe = load_recipe(f"{family.name}-4step", SETS)
    objective = Objective(recipe, family, family.grid(4))
    draws = Draws(5, 9, range(3), CPU)
    weights = objective.guidance(draws)
    assert isinstance(weights, torch.Tensor) and len(set(weights.tolist())) == 3
    assert torch.equal(weights, 2 + 6 * draws.uniform("dm/guidance"))
    assert torch.equal(objective.guidance(Draws(5, 9, range(1, 3), CPU)), weights[1:])  # as another process draws it
    many = objective.guidance(Draws(5, 9, range(200), CPU))
    assert 2 <= many.min() < 2.5 and 7.5 < many.max() < 8 and 4.5 < many.mean() < 5.5

    cond = family.encode(["a plain red circle above a striped blue ring"] * 3)
    x = draws.normal("x", family.latent_shape).requires_grad_()
    objective.dm_loss(x, family.teacher, family.teacher, cond, draws).backward()
    t = family.schedule.sample(draws.uniform("dm/t"), 20, 980)
    x_t = add_noise(family.schedule, x.detach(), draws.normal("dm/noise", family.latent_shape), t)
    with torch.no_grad():
        rows = [family.teacher.guided_x0(x_t[i : i + 1], t[i : i + 1], cond.rows(slice(i, i + 1)), float(weights[i]))
                for i in range(3)]  # fmt: skip
        gradient = losses.dm_gradient(x.detach(), torch.cat(rows), family.teacher.x0(x_t, t, cond))
    torch.testing.assert_close(x.grad, gradient / x.numel(), rtol=1e-3, atol=1e-7)


def test_the_recipe_takes_a_number_or_a_range(tmp_path: Path) -> None:
    recipe = load_recipe("sd3-4step", ["dm.guidance=[2, 8]"])
    assert (recipe.dm.guidance, recipe.dm.shown_guidance) == ((2.0, 8.0), 5.0)
    assert (load_recipe("sd3-4step").dm.guidance, load_recipe("sd3-4step").dm.shown_guidance) == (7.0, 7.0)
    assert load_recipe("shapes-sd3-4step").dm.shown_guidance == 4.0
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe
    for value in ("[8, 2]", "[2]", "[2, 5, 8]", "-1", "[-1, 2]", "high", "true", "[2, x]", ".inf", "null"):
        with pytest.raises(UsageError, match="^dm.guidance should be a number of at least 0, or two"):
            load_recipe("sdxl-4step", [f"dm.guidance={value}"])
