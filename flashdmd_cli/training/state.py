"""What changes during a run, roles with their optimizers and counters, and how it goes to disk and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashdmd_cli.core.losses import ema_update_
from flashdmd_cli.families.base import View
from flashdmd_cli.families.family import Family
from flashdmd_cli.runs.checkpoint import difference, kinds, load_state, save_state, unfit
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.networks import Stage1, new_discriminator, new_networks
from flashdmd_cli.training.roles import Role, assign

COUNTERS = ("iteration", "images_seen", "seconds", "probe")
"""What a state says beside the roles' own counters."""


def check_state(
    folder: Path,
    tensors: dict[str, Tensor],
    roles: Sequence[Role[Any]],
    updates: dict[str, int],
    average: View | None = None,
) -> None:
    """InputError that names the first tensor of a state that `roles` after `updates` updates cannot go on with."""
    wanted = kinds(average_tensors(average))
    for role in roles:
        wanted |= role.wanted(tensors, updates[role.name])
    if told := difference(kinds(tensors), wanted):
        raise unfit(folder, told)


def average_tensors(average: View | None) -> dict[str, Tensor]:
    """What a state keeps of the student's average: the live tensors by dotted name."""
    return {} if average is None else {f"average.net.{key}": value for key, value in average.weights().items()}


@dataclass
class State:
    """Everything that changes during a run."""

    student: Role[View]
    fake: Role[View]
    discriminator: Role[nn.Module] | None
    teacher: View
    average: View | None
    """Exponential moving average of the student."""
    reference: View | None = None
    """Stage 2: the student before its first update, frozen."""
    preference: Role[View] | None = None
    """Stage 2: a second optimizer of the student, for the preference loss; None: it takes the student's own."""
    world: World = World()
    """The processes that train this run together; every one of them has the same state."""
    iteration: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    probe: dict[str, Any] = field(default_factory=dict)
    """What the tripwires and the probe remember, JSON-able."""

    @classmethod
    def new(
        cls, recipe: Recipe, family: Family, stage1: Stage1 | None = None, world: World | None = None
    ) -> State:  # fmt: skip
        """A run at iteration 0: student and fake score begin as the teacher, or in stage 2 as stage 1 left them."""
        torch.manual_seed(recipe.train.seed)
        networks = new_networks(recipe, family, stage1)
        optim = recipe.optim
        heads = new_discriminator(recipe, family, stage1)
        state = cls(
            student=Role("student", networks.student, optim.lr_student, optim),
            fake=Role("fake", networks.fake, optim.lr_fake, optim),
            discriminator=Role("discriminator", heads, optim.lr_discriminator, optim) if heads is not None else None,
            teacher=networks.teacher,
            average=networks.average,
            reference=networks.reference,
            world=world or World(),
        )
        if recipe.align is not None and recipe.align.optimizer == "own":
            state.preference = Role("preference", networks.student, recipe.align.lr, optim, "align.lr", owner=False)
        return state

    @property
    def roles(self) -> list[Role[Any]]:
        return [role for role in (self.student, self.fake, self.discriminator, self.preference) if role is not None]

    @property
    def updates(self) -> dict[str, int]:
        """Optimizer steps of each role."""
        return {role.name: role.updates for role in self.roles}

    def follow(self, recipe: Recipe) -> None:
        """After a student update in stage 1: the fake score moves towards the student (Eq. 11)."""
        if recipe.fake.ema is not None:
            ema_update_(self.fake.parameters, self.student.parameters, recipe.fake.ema)

    def follow_average(self, recipe: Recipe) -> None:
        """After an iteration: the student's average. Not after an update, so that the average reaches back over as
        many pictures whatever the TTUR."""
        if self.average is not None and recipe.train.average_decay is not None:
            ema_update_(self.average.parameters, self.student.parameters, recipe.train.average_decay)

    @property
    def shipped(self) -> View:
        """The student that is shown and shipped: the average where the recipe has one."""
        return self.average or self.student.net

    @property
    def start(self) -> View:
        """The student before its first update: the teacher in stage 1, stage 1's student in stage 2."""
        return self.reference or self.teacher

    def contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that an iteration may change: tensors by dotted name, and counters."""
        tensors = {name: value for role in self.roles for name, value in role.tensors().items()}
        tensors |= average_tensors(self.average)
        meta = {
            "iteration": self.iteration,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "probe": self.probe,
            "updates": self.updates,
            "bad_updates": {role.name: role.bad_updates for role in self.roles},
        }
        return tensors, meta

    def save(self, folder: Path) -> None:
        """Write a resumable state."""
        save_state(folder, *self.contents())

    def load(self, folder: Path) -> None:
        """Continue from a state that `save` wrote; InputError, and nothing changed, when it is not one of this run."""
        tensors, meta = load_state(folder)
        try:
            updates = {role.name: meta["updates"][role.name] for role in self.roles}
            bad_updates = {role.name: meta["bad_updates"][role.name] for role in self.roles}
            counters = {name: meta[name] for name in COUNTERS}
        except KeyError as error:
            raise unfit(folder, f"does not say {error}") from None
        check_state(folder, tensors, self.roles, updates, self.average)
        self.take(tensors, counters | {"updates": updates, "bad_updates": bad_updates})

    def take(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Become what `contents` told."""
        for role in self.roles:
            role.load(tensors)
            role.updates, role.bad_updates = meta["updates"][role.name], meta["bad_updates"][role.name]
        assign(average_tensors(self.average), tensors)
        for name in COUNTERS:
            setattr(self, name, meta[name])
