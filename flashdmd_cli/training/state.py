"""The training state: roles with their optimizers, the student's average, and counters; saving and loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashdmd_cli.core.losses import ema_update_
from flashdmd_cli.families.base import View
from flashdmd_cli.families.family import Family
from flashdmd_cli.runs.checkpoint import difference, kinds, load_state, unfit
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.networks import Stage1, new_discriminator, new_networks
from flashdmd_cli.training.roles import Role, assign

COUNTERS = ("iteration", "images_seen", "seconds", "probe")
"""Fields of a saved state besides the roles' update counters."""


def check_state(
    folder: Path,
    present: Mapping[str, str],
    roles: Sequence[Role[Any]],
    updates: dict[str, int],
    average: View | None = None,
) -> None:
    """Raise InputError, naming the first tensor, if tensors of these kinds do not fit `roles` after `updates` updates
    each."""
    wanted = kinds(average_tensors(average))
    for role in roles:
        wanted |= role.wanted(present, updates[role.name])
    if problem := difference(present, wanted):
        raise unfit(folder, problem)


def average_tensors(average: View | None) -> dict[str, Tensor]:
    """The tensors of the student's average in a state, by dotted name; no copies."""
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
    """Stage 2: a second optimizer of the student, for the preference loss; None: the student's own one is used."""
    world: World = World()
    """The processes of this run; all have the same state."""
    iteration: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    probe: dict[str, Any] = field(default_factory=dict)
    """Memory of tripwires and collapse probe, JSON-serialisable."""

    @classmethod
    def new(
        cls, recipe: Recipe, family: Family, stage1: Stage1 | None = None, world: World | None = None
    ) -> State:  # fmt: skip
        """The state at iteration 0, initialised from the teacher, or in stage 2 from `stage1`."""
        torch.manual_seed(recipe.train.seed)
        networks = new_networks(recipe, family, stage1, world)
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
        """Number of optimizer steps of each role."""
        return {role.name: role.updates for role in self.roles}

    def follow(self, recipe: Recipe) -> None:
        """Move the fake score towards the student (Eq. 11); called after a student update by distillation."""
        if recipe.fake.ema is not None:
            ema_update_(self.fake.parameters, self.student.parameters, recipe.fake.ema)

    def follow_average(self, recipe: Recipe) -> None:
        """Update the student's average; called after every iteration rather than every student update, so that its
        time constant in pictures does not depend on the TTUR."""
        if self.average is not None and recipe.train.average_decay is not None:
            ema_update_(self.average.parameters, self.student.parameters, recipe.train.average_decay)

    @property
    def shipped(self) -> View:
        """The student to preview and export: the average, if the recipe has one."""
        return self.average or self.student.net

    @property
    def is_sharded(self) -> bool:
        """Whether every process has only a part of each network, so that all have to make the same forward passes."""
        return self.student.net.base.is_sharded

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

    def load(self, folder: Path) -> None:
        """Resume from a state with these `contents`; InputError, with nothing changed, if it is one of another run."""
        tensors, meta = load_state(folder, world=self.world)
        try:
            updates = {role.name: meta["updates"][role.name] for role in self.roles}
            bad_updates = {role.name: meta["bad_updates"][role.name] for role in self.roles}
            counters = {name: meta[name] for name in COUNTERS}
        except KeyError as error:
            raise unfit(folder, f"lacks {error}") from None
        check_state(folder, tensors.kinds(), self.roles, updates, self.average)
        self.take(tensors, counters | {"updates": updates, "bad_updates": bad_updates})

    def take(self, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Restore what `contents` returned."""
        for role in self.roles:
            role.load(tensors)
            role.updates, role.bad_updates = meta["updates"][role.name], meta["bad_updates"][role.name]
        assign(average_tensors(self.average), tensors)
        for name in COUNTERS:
            setattr(self, name, meta[name])
