"""The three roles of a distillation run with their optimizers and counters, and how they go to disk and back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashdmd_cli.core.losses import ema_update_
from flashdmd_cli.models.adapters import add_lora, merge_lora, trainable_parameters
from flashdmd_cli.models.discriminator import LatentDiscriminator, PixelDiscriminator, load_sam_encoder
from flashdmd_cli.models.family import Family
from flashdmd_cli.runs.checkpoint import difference, kinds, load_state, save_state, unfit
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.tables import AdamW

COUNTERS = ("iteration", "images_seen", "seconds", "probe")
"""What a state says beside the roles' own counters."""
MAX_BAD_UPDATES = 10
"""Updates in a row that may be skipped for a gradient that is not finite before the run gives up."""


class Role:
    """A network with its optimizer, clipping and update counter."""

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

    def update(self, factor: float = 1.0) -> float:
        """One optimizer step at `factor` of the learning rate on the accumulated gradients.

        Returns the gradients' norm before clipping.

        A gradient that is not finite is dropped and counted; `NumericalError` after `MAX_BAD_UPDATES` in a row.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.optim.clip)
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * factor
            self.optimizer.step()
            self.updates += 1
            self.bad_updates = 0
        else:
            self.bad_updates += 1
            if self.bad_updates >= MAX_BAD_UPDATES:
                raise NumericalError(
                    f"{self.lr_key}: {MAX_BAD_UPDATES} gradients in a row were not finite",
                    hint="a lower one, or model.precision=fp32 where it is bf16, in another --out",
                )
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def tensors(self) -> dict[str, Tensor]:
        """Trainable parameters, buffers and optimizer moments, by dotted name."""
        moments = {
            f"{self.name}.optimizer.{index}.{key}": value
            for index, slots in self.optimizer.state_dict()["state"].items()
            for key, value in slots.items()
        }
        return self._weights() | moments

    def _weights(self) -> dict[str, Tensor]:
        return {f"{self.name}.net.{key}": v for key, v in trained(self.net).items()} if self.owner else {}

    def wanted(self, found: Iterable[str], updates: int) -> dict[str, str]:
        """Names and kinds of the tensors that a state after `updates` updates must have.

        A parameter that no loss reaches has no moments, so the names that were `found` say whose are there.
        """
        moments: dict[int, dict[str, str]] = {}
        for index, p in enumerate(self.parameters):
            slots = {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p}
            moments[index] = kinds({f"{self.name}.optimizer.{index}.{slot}": v for slot, v in slots.items()})
        names = set(found)
        reached = [rows for rows in moments.values() if not names.isdisjoint(rows)] or list(moments.values())
        return kinds(self._weights()) | {k: v for rows in reached if updates for k, v in rows.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave, after `check_state` has found it whole."""
        own = {name: tensors[f"{self.name}.net.{name}"] for name in trained(self.net)} if self.owner else {}
        self.net.load_state_dict(self.net.state_dict() | own)
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"{self.name}.optimizer."
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, slot = key.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def trained(net: nn.Module) -> dict[str, Tensor]:
    """What a state keeps of `net`: all but its frozen weights, which come from elsewhere."""
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    return {name: value for name, value in net.state_dict().items() if name not in frozen}


def fill(net: nn.Module, values: dict[str, Tensor], state: Path) -> None:
    """Give `net` everything that a state keeps of it; InputError for a tensor too few, too many, or of another kind."""
    if told := difference(kinds(values), kinds(trained(net))):
        raise unfit(state, told, "--from")
    net.load_state_dict(net.state_dict() | values)


def check_state(
    folder: Path,
    tensors: dict[str, Tensor],
    roles: Sequence[Role],
    updates: dict[str, int],
    average: Sequence[Tensor] = (),
) -> None:
    """InputError that names the first tensor of a state that `roles` after `updates` updates cannot go on with."""
    wanted = kinds({f"average.{index}": value for index, value in enumerate(average)})
    for role in roles:
        wanted |= role.wanted(tensors, updates[role.name])
    if told := difference(kinds(tensors), wanted):
        raise unfit(folder, told)


@dataclass(frozen=True)
class Origin:
    """What stage 2 starts from instead of the teacher: the networks that stage 1 left, plain and frozen."""

    student: nn.Module
    fake: nn.Module
    heads: dict[str, Tensor] | None
    """The discriminator's, where stage 1's can be used on."""
    iteration: int
    """Iterations of stage 1, so that noise drawn in stage 2 goes on from there; data are read again."""
    state: Path = Path("state")
    """Where fake score and heads were read, for messages."""


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
    def new(cls, recipe: Recipe, family: Family, origin: Origin | None = None) -> State:
        """Student and fake score as copies of the teacher (Algorithm 1, lines 1-3) or of `origin`'s; heads and adapters
        drawn with the run's seed. `recipe.gan.sam` is the place of SAM's weights. InputError where `origin`'s weights
        are not all that the networks have."""
        torch.manual_seed(recipe.train.seed)
        student = family.new_network() if origin is None else trainable(origin.student).to(family.device)
        if recipe.model.form == "lora":
            student = add_lora(student, recipe.model.lora_rank, recipe.model.lora_alpha)  # type: ignore[arg-type]
        # A copy with its adapters, since Eq. 11 averages tensor by tensor. An origin's fake score has other weights
        # below them, but its adapter begins where the student's does.
        fake = copy.deepcopy(student)
        if origin is not None:
            _put_below_adapters(fake, origin.fake, origin.state)
        optim = recipe.optim
        heads = _discriminator(recipe, fake, family.precision)
        if heads is not None and origin is not None and origin.heads is not None:
            fill(heads, origin.heads, origin.state)
        average = None
        if recipe.train.average_images is not None:
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
        """After a student update in stage 1: the fake score moves towards the student (Eq. 11)."""
        if recipe.fake.ema is not None:
            ema_update_(self.fake.parameters, self.student.parameters, recipe.fake.ema)

    def follow_average(self, recipe: Recipe) -> None:
        """After an iteration: the student's average. Not after an update, so that the average reaches back over as
        many pictures whatever the TTUR."""
        if self.average is not None and recipe.train.average_decay is not None:
            ema_update_(self.average, self.student.parameters, recipe.train.average_decay)

    def shipped_student(self) -> nn.Module:
        """The student as a plain network: averaged if the recipe says so, adapters merged."""
        net: Any = copy.deepcopy(self.student.net)
        if self.average is not None:
            with torch.no_grad():
                for parameter, value in zip(trainable_parameters(net), self.average, strict=True):
                    parameter.copy_(value)
        return merge_lora(net).requires_grad_(False)

    def contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that an iteration may change: tensors by dotted name, and counters."""
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
        check_state(folder, tensors, self.roles, updates, self.average or ())
        self.take(tensors, counters | {"updates": updates, "bad_updates": bad_updates})

    def take(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Become what `contents` told."""
        for role in self.roles:
            role.load(tensors)
            role.updates, role.bad_updates = meta["updates"][role.name], meta["bad_updates"][role.name]
        if self.average is not None:
            self.average = [tensors[f"average.{index}"].to(v.device) for index, v in enumerate(self.average)]
        for name in COUNTERS:
            setattr(self, name, meta[name])


def trainable(net: nn.Module) -> nn.Module:
    """A copy in float32 whose weights all learn; in eval mode, since no role uses dropout."""
    return copy.deepcopy(net).float().eval().requires_grad_(True)


def _put_below_adapters(net: nn.Module, plain: nn.Module, state: Path) -> None:
    """Copy all weights of `plain` into `net`, which may wear adapters, whose own weights stay."""
    held, values = net.state_dict(), {name: value.float() for name, value in plain.state_dict().items()}
    below = {name: name.replace(".base_layer.", ".") for name in held if ".lora_" not in name}
    if told := difference(kinds(values), kinds({below[name]: held[name] for name in below})):
        raise unfit(state, f"holds another fake score: it {told}", "--from")
    net.load_state_dict(held | {name: values[key] for name, key in below.items()})


def _discriminator(recipe: Recipe, fake: nn.Module, precision: str) -> nn.Module | None:
    if recipe.gan.kind == "none":
        return None
    device = next(fake.parameters()).device
    if recipe.gan.kind == "latent":
        width = fake.config.block_out_channels[-1]  # type: ignore[index,union-attr]
        return LatentDiscriminator(width).to(device)  # type: ignore[arg-type]
    return PixelDiscriminator(load_sam_encoder(recipe.gan.sam), precision=precision).to(device)
