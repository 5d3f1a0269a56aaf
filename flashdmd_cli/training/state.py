"""The three roles of a distillation run with their optimizers and counters, and how they go to disk and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from flashdmd_cli.core.losses import ema_update_
from flashdmd_cli.models.base import Base, View
from flashdmd_cli.models.discriminator import LatentDiscriminator, PixelDiscriminator, load_sam_encoder
from flashdmd_cli.models.family import Family
from flashdmd_cli.runs.checkpoint import difference, kinds, load_state, save_state, unfit
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.tables import AdamW

Net = TypeVar("Net", View, nn.Module)
COUNTERS = ("iteration", "images_seen", "seconds", "probe")
"""What a state says beside the roles' own counters."""
MAX_BAD_UPDATES = 10
"""Updates in a row that may be skipped for a gradient that is not finite before the run gives up."""


class Role(Generic[Net]):
    """A network with its optimizer, clipping and update counter."""

    def __init__(self, name: str, net: Net, lr: float, optim: AdamW, lr_key: str = "", owner: bool = True) -> None:
        """`lr_key` names the recipe's field of `lr`; `owner` is false where another role saves the weights."""
        self.net: Net = net
        self.name, self.lr, self.optim, self.owner = name, lr, optim, owner
        self.lr_key = lr_key or f"optim.lr_{name}"
        self.parameters = parameters_of(net)
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
        if self.owner:
            assign(trained(self.net), {name: tensors[f"{self.name}.net.{name}"] for name in trained(self.net)})
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"{self.name}.optimizer."
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, slot = key.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def parameters_of(net: View | nn.Module) -> list[nn.Parameter]:
    """What an optimizer moves: a denoiser's own parameters, or a discriminator's that are not frozen."""
    return net.parameters if isinstance(net, View) else [p for p in net.parameters() if p.requires_grad]


def trained(net: View | nn.Module) -> dict[str, Tensor]:
    """What a state keeps of `net`: all but its frozen weights, which come from elsewhere. The live tensors."""
    if isinstance(net, View):
        return net.weights()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    return {name: value for name, value in net.state_dict().items() if name not in frozen}


@torch.no_grad()
def assign(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy `values` into the tensors of the same names."""
    for name, tensor in live.items():
        tensor.copy_(values[name])


def fill(net: View | nn.Module, values: dict[str, Tensor], state: Path) -> None:
    """Give `net` everything that a state keeps of it; InputError for a tensor too few, too many, or of another kind."""
    live = trained(net)
    if told := difference(kinds(values), kinds(live)):
        raise unfit(state, told, "--from")
    assign(live, values)


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


@dataclass(frozen=True)
class Stage1Adapters:
    """What stage 1 trained on the teacher, where it trained adapters."""

    student: dict[str, Tensor]
    fake: dict[str, Tensor]
    rank: int
    alpha: float

    def put_on(self, base: Base, student: str, fake: str) -> None:
        """Put both on `base` under these names, frozen."""
        for name, values in ((student, self.student), (fake, self.fake)):
            with torch.random.fork_rng(devices=[]):
                view = base.add_adapter(name, self.rank, self.alpha)
            assign(view.weights(), values)
            for parameter in view.parameters:
                parameter.requires_grad_(False)


@dataclass(frozen=True)
class Stage1:
    """Stage-1 networks that initialise stage 2, frozen, on the CPU."""

    student: View
    fake: View | None
    """None where stage 1's state is gone: the fake score begins as the student."""
    heads: dict[str, Tensor] | None
    """The discriminator's, where stage 1's can be used on."""
    iteration: int
    """Iterations of stage 1, so that noise drawn in stage 2 goes on from there; data are read again."""
    adapters: Stage1Adapters | None = None
    """Student's and fake score's, where stage 1 trained adapters on this teacher and its state is there."""
    state: Path = Path("state")
    """Where fake score and heads were read, for messages."""


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
    iteration: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    probe: dict[str, Any] = field(default_factory=dict)
    """What the tripwires and the probe remember, JSON-able."""

    @classmethod
    def new(cls, recipe: Recipe, family: Family, stage1: Stage1 | None = None) -> State:
        """A run at iteration 0: student and fake score begin as the teacher, or in stage 2 as stage 1 left them."""
        torch.manual_seed(recipe.train.seed)
        networks = _adapters if recipe.model.form == "lora" else _copies
        student, fake, teacher, average, reference = networks(recipe, family, stage1)
        optim = recipe.optim
        heads = _discriminator(recipe, family)
        if heads is not None and stage1 is not None and stage1.heads is not None:
            fill(heads, stage1.heads, stage1.state)
        state = cls(
            student=Role("student", student, optim.lr_student, optim),
            fake=Role("fake", fake, optim.lr_fake, optim),
            discriminator=Role("discriminator", heads, optim.lr_discriminator, optim) if heads is not None else None,
            teacher=teacher,
            average=average,
            reference=reference,
        )
        if recipe.align is not None and recipe.align.optimizer == "own":
            state.preference = Role("preference", student, recipe.align.lr, optim, "align.lr", owner=False)
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


Networks = tuple[View, View, View, View | None, View | None]
"""Student, fake score, teacher, the student's average, and in stage 2 the reference."""


def _copies(recipe: Recipe, family: Family, stage1: Stage1 | None) -> Networks:
    """Full fine-tuning: every role has a network of its own."""
    student = family.base if stage1 is None else stage1.student.base.to(family.device)
    fake = family.base if stage1 is None else (stage1.fake or stage1.student).base.to(family.device)
    average = student.copy(trainable=False).view() if recipe.train.average_images else None
    reference = student.view() if stage1 is not None else None
    return student.copy().view(), fake.copy().view(), family.teacher, average, reference


def _adapters(recipe: Recipe, family: Family, stage1: Stage1 | None) -> Networks:
    """Adapters: teacher, student, fake score, average and reference share one network.

    In stage 2 stage 1's adapters lie frozen below the roles' own. Where stage 1 trained all weights, or its state is
    gone, its student and its fake score are the networks that adapters go on.
    """
    rank, alpha = recipe.model.lora_rank, recipe.model.lora_alpha
    base = fake_base = family.base.twin()
    below: tuple[str, ...] = ()
    fake_below: tuple[str, ...] = ()
    if stage1 is not None and stage1.adapters is not None:
        below, fake_below = ("stage1_student",), ("stage1_fake",)
        stage1.adapters.put_on(base, *below, *fake_below)
    elif stage1 is not None:
        base, fake_base = (
            each.base.to(family.device).twin() for each in (stage1.student, stage1.fake or stage1.student)
        )

    def like_students(base: Base, name: str, below: tuple[str, ...]) -> View:
        """A new adapter with the values of the student's, since Eq. 11 averages tensor by tensor."""
        with torch.random.fork_rng(devices=[]):
            view = base.add_adapter(name, rank, alpha, below)
        assign(view.weights(), student.weights())
        return view

    student = base.add_adapter("student", rank, alpha, below)
    fake = like_students(fake_base, "fake", fake_below)
    average = like_students(base, "average", below) if recipe.train.average_images else None
    teacher = base.view() if stage1 is None or stage1.adapters is not None else family.teacher
    return student, fake, teacher, average, base.view(*below) if stage1 is not None else None


def _discriminator(recipe: Recipe, family: Family) -> nn.Module | None:
    if recipe.gan.kind == "none":
        return None
    if recipe.gan.kind == "latent":
        return LatentDiscriminator(family.tap_widths).to(family.device)
    return PixelDiscriminator(load_sam_encoder(recipe.gan.sam), precision=family.precision).to(family.device)
