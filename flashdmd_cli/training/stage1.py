"""Loading of the stage-1 networks for stage 2: the student from the checkpoint, all else from its last state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flashdmd_cli.families.base import View
from flashdmd_cli.families.family import Family
from flashdmd_cli.runs.checkpoint import difference, kinds, load_state, state_folder, unfit
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.training.networks import Stage1, Stage1Adapters
from flashdmd_cli.training.roles import fill

STUDENT, AVERAGE, FAKE, HEADS = "student.net.", "average.net.", "fake.net.", "discriminator.net."


def load_stage1(folder: Path, iteration: int, stage1: Recipe, recipe: Recipe, family: Family) -> Stage1:
    """Networks of the checkpoint `folder`, trained for `iteration` iterations with the recipe `stage1`, on the CPU.

    Its last state is not part of the manifest and may have been deleted; then the fake score is initialised from the
    student, and the discriminator at random. Raises OSError or ValueError if `student/` cannot be read, InputError for
    a damaged state.
    """
    student = family.load_student(folder / "student")
    saved = state_folder(folder / "state", iteration)
    if not saved.is_dir():
        return Stage1(student, None, None, iteration)
    try:
        tensors, _ = load_state(saved, "--from")
        heads = _part(tensors, HEADS) if _same_discriminator(stage1, recipe) else None
        if stage1.model.form == "full":
            return Stage1(student, _fake(tensors, family, saved), heads, iteration, state=saved)
        adapters = _adapters(tensors, stage1, family, saved)
        if recipe.model.form == "lora":
            return Stage1(student, None, heads, iteration, adapters, saved)
        merged = family.base.twin()
        adapters.put_on(merged, "student", "fake")
        fake = merged.view("fake").plain()
        return Stage1(student, fake, heads, iteration, state=saved)
    except InputError as error:
        raise InputError(
            error.message, hint=f"delete {saved}; the fake score is then initialised from the student"
        ) from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}


def _fake(tensors: Mapping[str, Tensor], family: Family, saved: Path) -> View:
    """The fake score of a stage 1 with full fine-tuning."""
    view = family.base.copy(trainable=False).to("cpu").view()
    fill(view, _part(tensors, FAKE), saved)
    return view


def _adapters(tensors: Mapping[str, Tensor], stage1: Recipe, family: Family, saved: Path) -> Stage1Adapters:
    """Adapters of stage 1, the student's averaged if its recipe says so; InputError if they do not fit the teacher."""
    rank, alpha = stage1.model.lora_rank, stage1.model.lora_alpha
    student = _part(tensors, AVERAGE if stage1.train.average_images else STUDENT)
    fake = _part(tensors, FAKE)
    wanted = kinds(family.base.twin().add_adapter("student", rank, alpha).weights())
    for values in (student, fake):
        if problem := difference(kinds(values), wanted):
            raise unfit(saved, problem, "--from")
    return Stage1Adapters(student, fake, rank, alpha)


def _same_discriminator(one: Recipe, two: Recipe) -> bool:
    return one.gan.kind != "none" and (one.gan.kind, one.gan.sam) == (two.gan.kind, two.gan.sam)
