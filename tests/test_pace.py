"""Warm-up and average go by pictures: the same for a student that is updated in every iteration and in every fifth."""

from __future__ import annotations

import math

import pytest
import torch

from flashdmd_cli.runs.recipe import RewardRecipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.roles import Role
from flashdmd_cli.training.state import State

from .test_distill import QUIET, recipe, sam_folder, seeing  # noqa: F401


@pytest.fixture
def rates(monkeypatch):
    """Learning-rate factors of every update, by role."""
    seen: dict[str, list[float]] = {}
    update = Role.update

    def noted(role, factor=1.0, world=None):
        norm = update(role, factor, world)
        assert role.optimizer.param_groups[0]["lr"] == role.lr * factor
        seen.setdefault(role.name, []).append(factor)
        return norm

    monkeypatch.setattr(Role, "update", noted)
    return seen


@pytest.mark.parametrize("ttur", [1, 2])
def test_warm_up_ends_after_the_same_pictures_whatever_the_ttur(
    ttur, rates, tiny_family, sam_folder, random_data, tmp_path  # noqa: F811
):  # fmt: skip
    r = recipe(gan__kind="none", fake__ttur=ttur, optim__warmup_images=6)
    distill(seeing(sam_folder, r), tiny_family, random_data, tmp_path, QUIET, StopFlag())
    expected = [2 / 6, 4 / 6, 1.0, 1.0]  # iterations of two pictures
    assert rates["fake"] == expected
    assert rates["student"] == expected[::ttur]


@pytest.mark.parametrize("ttur", [1, 2])
def test_average_forgets_by_pictures(ttur, tiny_family, sam_folder, random_data, tmp_path, monkeypatch):  # noqa: F811
    r = recipe(gan__kind="none", fake__ttur=ttur, train__average_images=5)
    history: list[torch.Tensor] = []
    follow = State.follow_average

    def noted(state, recipe):
        history.append(state.student.parameters[0].detach().clone())
        follow(state, recipe)

    monkeypatch.setattr(State, "follow_average", noted)
    before = tiny_family.teacher.parameters[0].detach()
    state = distill(seeing(sam_folder, r), tiny_family, random_data, tmp_path, QUIET, StopFlag())
    decay = math.exp(-2 / 5)
    expected = before
    for student in history:
        expected = decay * expected + (1 - decay) * student
    assert len(history) == 4 and state.updates["student"] == 4 // ttur
    torch.testing.assert_close(state.average.parameters[0], expected)
    assert state.shipped == state.average


def test_reward_rate_warms_up_then_decays_to_zero_at_the_end():
    r = RewardRecipe.model_validate({"optim": {"warmup": 4}, "train": {"iterations": 10}})
    factors = [r.rate_factor(step) for step in range(10)]
    assert factors == [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    flat = r.model_copy(update={"optim": r.optim.model_copy(update={"decay": False})})
    assert [flat.rate_factor(step) for step in (0, 3, 4, 9)] == [1 / 4, 1, 1, 1]
