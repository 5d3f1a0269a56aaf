"""The networks of a run at iteration 0: copies of the teacher or adapters on it, in stage 2 those of stage 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.family import Family
from flashdmd_cli.networks.heads import LatentDiscriminator, PixelDiscriminator
from flashdmd_cli.networks.sam import load_sam_encoder
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.roles import assign, fill


def adapter_of(
    values: dict[str, Tensor], base: Base, name: str, rank: int, alpha: float, below: Sequence[str] = ()
) -> View:
    """A new adapter on `base` with these weights; the global random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        view = base.add_adapter(name, rank, alpha, below)
    assign(view.weights(), values)
    return view


def freeze(view: View) -> None:
    """Exclude a view's own parameters from training."""
    for parameter in view.parameters:
        parameter.requires_grad_(False)


@dataclass(frozen=True)
class Stage1Adapters:
    """Adapter weights of a stage 1 that trained adapters on the teacher."""

    student: dict[str, Tensor]
    fake: dict[str, Tensor]
    rank: int
    alpha: float

    def put_on(self, base: Base, student: str, fake: str) -> None:
        """Add both adapters to `base` under the given names, frozen."""
        for name, values in ((student, self.student), (fake, self.fake)):
            freeze(adapter_of(values, base, name, self.rank, self.alpha))


@dataclass(frozen=True)
class Stage1:
    """Stage-1 networks that initialise stage 2, frozen, on the CPU."""

    student: View
    fake: View | None
    """None if the state of stage 1 was deleted: the fake score is then initialised from the student."""
    heads: dict[str, Tensor] | None
    """Weights of the discriminator heads; None if they were deleted or stage 2 has another discriminator."""
    iteration: int
    """Number of iterations of stage 1; stage 2 continues its numbering, so no random numbers are used twice."""
    adapters: Stage1Adapters | None = None
    """Adapters of student and fake score, if stage 1 trained adapters and its state still exists."""
    state: Path = Path("state")
    """Folder of the state that fake score and heads were loaded from, for error messages."""


@dataclass(frozen=True)
class Networks:
    """The denoisers of a run."""

    student: View
    fake: View
    teacher: View
    average: View | None
    """Moving average of the student, if the recipe has one; initialised from the student."""
    reference: View | None
    """Stage 2: the student before its first update."""


def new_networks(recipe: Recipe, family: Family, stage1: Stage1 | None, world: World | None = None) -> Networks:
    """The networks at iteration 0: copies of the teacher in stage 1, those of `stage1` in stage 2.

    With `model.sharding: fsdp` and several processes, all are sharded, also the family's teacher and `stage1`.
    """
    if recipe.model.checkpointing:
        family.checkpoint_decoder()
    if recipe.model.form == "lora":
        return _adapters(recipe, family, stage1)
    return _full(recipe, family, stage1, recipe.model.sharding == "fsdp" and (world or World()).size > 1)


def _full(recipe: Recipe, family: Family, stage1: Stage1 | None, sharded: bool) -> Networks:
    """Full fine-tuning: every trained role has its own network."""

    def prepared(base: Base, checkpointed: bool = False, compiled: bool = False) -> Base:
        base = base.checkpointed() if checkpointed and recipe.model.checkpointing else base
        base = base.compiled() if compiled and recipe.model.compile else base
        return base.sharded() if sharded else base  # at once: whole copies may not fit side by side

    first = family.base if stage1 is None else stage1.student.base.to(family.device)
    average = prepared(first.copy(trainable=False)).view() if recipe.train.average_images else None
    student = prepared(first.copy(), True, True).view()
    first_fake = family.base if stage1 is None else (stage1.fake or stage1.student).base
    fake = prepared(first_fake.copy().to(family.device), True, True).view()  # only the copy is needed on the device
    teacher = prepared(family.base, compiled=True).view()
    reference = prepared(first).view() if stage1 is not None else None
    return Networks(student, fake, teacher, average, reference)


def _adapters(recipe: Recipe, family: Family, stage1: Stage1 | None) -> Networks:
    """Adapters: teacher, student, fake score, average and reference share one network.

    In stage 2, new adapters are trained on top of the frozen ones of stage 1. If stage 1 trained all weights, the new
    adapters are put on its student and its fake score instead; if its state was deleted, on its student for both.
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

    if recipe.model.checkpointing:
        base.checkpointed()
        fake_base.checkpointed()  # often the same
    if recipe.model.compile:
        base.compiled()
        fake_base.compiled()
    student = base.add_adapter("student", rank, alpha, below)
    # Initialised with the student's values, because Eq. 11 averages tensor by tensor.
    values = student.weights()
    fake = adapter_of(values, fake_base, "fake", rank, alpha, fake_below)
    average = adapter_of(values, base, "average", rank, alpha, below) if recipe.train.average_images else None
    if average is not None:
        freeze(average)
    teacher = base.view() if stage1 is None or stage1.adapters is not None else family.teacher
    return Networks(student, fake, teacher, average, base.view(*below) if stage1 is not None else None)


def new_discriminator(recipe: Recipe, family: Family, stage1: Stage1 | None) -> nn.Module | None:
    """The discriminator of the recipe, with the heads of `stage1` if it has any; None for `gan.kind: none`."""
    heads: nn.Module
    if recipe.gan.kind == "none":
        return None
    if recipe.gan.kind == "latent":
        heads = LatentDiscriminator(family.tap_widths)
    else:
        heads = PixelDiscriminator(load_sam_encoder(recipe.gan.sam), precision=family.precision)
    if stage1 is not None and stage1.heads is not None:
        fill(heads, stage1.heads, stage1.state)
    return heads.to(family.device)
