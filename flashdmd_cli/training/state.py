"""The three roles of a distillation run with their optimizers and counters, and how they go to disk and back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashdmd_cli.core.losses import ema_update_
from flashdmd_cli.models.adapters import add_lora, merge_lora, trainable_parameters
from flashdmd_cli.models.discriminator import LatentDiscriminator, PixelDiscriminator, load_sam_encoder
from flashdmd_cli.models.family import Family
from flashdmd_cli.runs.checkpoint import load_state, save_state
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.tables import AdamW

MAX_BAD_UPDATES = 10
"""Updates in a row that may be skipped for a gradient that is not finite before the run gives up."""


class Role:
    """A network with its optimizer, learning-rate warm-up, clipping and update counter."""

    def __init__(
        self, name: str, net: nn.Module, lr: float, optim: AdamW, lr_key: str = "", owner: bool = True
    ) -> None:
        """`lr_key` names the recipe's field of `lr`; `owner` is false where another role saves the weights."""
        self.name, self.net, self.lr, self.optim, self.owner = name, net, lr, optim, owner
        self.lr_key = lr_key or f"optim.lr_{name}"
        self.parameters = trainable_parameters(net)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )
        self.updates = 0
        self.bad_updates = 0

    def update(self) -> float:
        """One optimizer step on the accumulated gradients; returns their norm before clipping.

        A gradient that is not finite is dropped and counted; `NumericalError` after `MAX_BAD_UPDATES` in a row.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.optim.clip)
        if torch.isfinite(norm):
            warmup = self.optim.warmup
            rate = self.lr * min(1.0, (self.updates + 1) / warmup) if warmup else self.lr
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.updates += 1
            self.bad_updates = 0
        else:
            self.bad_updates += 1
            if self.bad_updates >= MAX_BAD_UPDATES:
                raise NumericalError(
                    f"{self.lr_key}: {MAX_BAD_UPDATES} gradients in a row were not finite",
                    hint="lower the learning rate, or set model.precision=fp32, and run the same command again",
                )
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def tensors(self) -> dict[str, Tensor]:
        """Trainable parameters, buffers and optimizer moments, by dotted name."""
        frozen = {name for name, p in self.net.named_parameters() if not p.requires_grad}
        held = self.net.state_dict() if self.owner else {}
        weights = {f"{self.name}.net.{k}": v for k, v in held.items() if k not in frozen}
        moments = {
            f"{self.name}.optimizer.{index}.{key}": value
            for index, slots in self.optimizer.state_dict()["state"].items()
            for key, value in slots.items()
        }
        return weights | moments

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        prefix = f"{self.name}.net."
        self.net.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, strict=False
        )
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"{self.name}.optimizer."
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, slot = key.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Origin:
    """What stage 2 starts from instead of the teacher: the networks that stage 1 left, plain and frozen."""

    student: nn.Module
    fake: nn.Module
    heads: dict[str, Tensor] | None
    """The discriminator's, where stage 1's can be used on."""
    iteration: int
    """Iterations of stage 1, so that noise drawn in stage 2 goes on from there; data are read again."""


@dataclass
class State:
    """Everything that changes during a run."""

    student: Role
    fake: Role
    discriminator: Role | None
    average: list[Tensor] | None
    preference: Role | None = None
    """The student's second optimizer, for the preference steps of stage 2."""
    iteration: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    probe: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, recipe: Recipe, family: Family, sam: str | Path, origin: Origin | None = None) -> State:
        """Student and fake score as copies of the teacher (Algorithm 1, lines 1-3) or of `origin`'s; heads and adapters
        drawn with the run's seed."""
        torch.manual_seed(recipe.train.seed)
        student = family.new_network() if origin is None else _trainable(origin.student).to(family.device)
        if recipe.model.form == "lora":
            student = add_lora(student, recipe.model.lora_rank, recipe.model.lora_alpha)  # type: ignore[arg-type]
        # A copy with its adapters, since Eq. 11 averages tensor by tensor. An origin's fake score has other weights
        # below them, but its adapter begins where the student's does.
        fake = copy.deepcopy(student)
        if origin is not None:
            fake.load_state_dict(_below_adapters(fake, origin.fake), strict=False)
        optim = recipe.optim
        heads = _discriminator(recipe, fake, sam, family.precision)
        if heads is not None and origin is not None and origin.heads is not None:
            heads.load_state_dict(origin.heads, strict=False)
        average = None
        if recipe.train.generator_ema is not None:
            average = [p.detach().clone() for p in trainable_parameters(student)]
        state = cls(
            student=Role("student", student, optim.lr_student, optim),
            fake=Role("fake", fake, optim.lr_fake, optim),
            discriminator=Role("discriminator", heads, optim.lr_discriminator, optim) if heads is not None else None,
            average=average,
        )
        if recipe.align is not None and recipe.align.optimizer == "own":
            state.preference = Role("preference", student, recipe.align.lr, optim, "align.lr", owner=False)
        return state

    @property
    def roles(self) -> list[Role]:
        return [role for role in (self.student, self.fake, self.discriminator, self.preference) if role is not None]

    @property
    def updates(self) -> dict[str, int]:
        """Optimizer steps of each role."""
        return {role.name: role.updates for role in self.roles}

    def follow(self, recipe: Recipe) -> None:
        """After a student update: Eq. 11 into the fake score, and the student's own average."""
        if recipe.fake.ema is not None:
            ema_update_(self.fake.parameters, self.student.parameters, recipe.fake.ema)
        self.follow_average(recipe)

    def follow_average(self, recipe: Recipe) -> None:
        """After any update of the student: its own average."""
        if self.average is not None and recipe.train.generator_ema is not None:
            ema_update_(self.average, self.student.parameters, recipe.train.generator_ema)

    def shipped_student(self) -> nn.Module:
        """The student as a plain network: averaged if the recipe says so, adapters merged."""
        net: Any = copy.deepcopy(self.student.net)
        if self.average is not None:
            with torch.no_grad():
                for parameter, value in zip(trainable_parameters(net), self.average, strict=True):
                    parameter.copy_(value)
        return merge_lora(net).requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write a resumable state."""
        tensors = {name: value for role in self.roles for name, value in role.tensors().items()}
        for index, value in enumerate(self.average or ()):
            tensors[f"average.{index}"] = value
        meta = {
            "iteration": self.iteration,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "probe": self.probe,
            "updates": self.updates,
            "bad_updates": {role.name: role.bad_updates for role in self.roles},
        }
        save_state(folder, tensors, meta)

    def load(self, folder: Path) -> None:
        """Continue from a state that `save` wrote."""
        tensors, meta = load_state(folder)
        for role in self.roles:
            role.load(tensors)
            role.updates, role.bad_updates = meta["updates"][role.name], meta["bad_updates"][role.name]
        if self.average is not None:
            self.average = [tensors[f"average.{index}"].to(v.device) for index, v in enumerate(self.average)]
        self.iteration, self.images_seen = meta["iteration"], meta["images_seen"]
        self.seconds, self.probe = meta["seconds"], meta["probe"]


def _trainable(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).float().eval().requires_grad_(True)


def _below_adapters(net: nn.Module, plain: nn.Module) -> dict[str, Tensor]:
    """The weights of `plain` under the names that they have in `net`, which may wear adapters."""
    values, names = plain.state_dict(), net.state_dict().keys()
    return {name: values[key] for name in names if (key := name.replace(".base_layer.", ".")) in values}


def _discriminator(recipe: Recipe, fake: nn.Module, sam: str | Path, precision: str) -> nn.Module | None:
    if recipe.gan.kind == "none":
        return None
    if recipe.gan.kind == "latent":
        width = fake.config.block_out_channels[-1]  # type: ignore[index,union-attr]
        return LatentDiscriminator(width).to(next(fake.parameters()).device)  # type: ignore[arg-type]
    return PixelDiscriminator(load_sam_encoder(sam), precision=precision).to(next(fake.parameters()).device)
