"""What something named on the command line is, by its manifest and its configuration; its name says nothing."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source, same_denoiser
from flashdmd_cli.families.registry import FAMILIES, family_at
from flashdmd_cli.families.sdxl.layout import same_world
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import find_run
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.shapes.assets import asset

SHAPES = "shapes-sdxl"
"""The embedded world's teacher, as it is named on the command line."""


def is_shapes(teacher: str | Path) -> bool:
    """Whether a teacher draws the embedded world: the shipped one, or a folder with its denoiser's sizes and words."""
    if teacher == SHAPES:
        return True
    try:
        return same_world(expanded(teacher), asset(SHAPES))
    except FileNotFoundError:
        return False


def is_shapes_student(student: Path) -> bool:
    """Whether a student's denoiser is the embedded teacher's, wherever its teacher is by now."""
    try:
        return same_denoiser(student, asset(SHAPES) / "unet")
    except FileNotFoundError:
        return False


def is_exported(folder: Path) -> bool:
    """Whether a pipeline folder is a student that `export` wrote: its manifest says so, or how its scheduler is set."""
    return _kind(folder) == "export" or family_at(folder).module.is_student(folder)


def find_student(name: str | None, *kinds: str) -> Path:
    """The folder that `--from` names, or the newest under ./runs, where only a student will do.

    InputError for a teacher, with what makes a student of it.
    """
    if name is not None and _is_teacher(name):
        raise InputError(
            f"--from {name}: is a teacher, not a student",
            hint=f"flashdmd distill --teacher {name} makes a student of it; give its folder",
        )
    return find_run(name, *kinds)


def _is_teacher(name: str) -> bool:
    """Whether `--teacher` knows it by this name, or it is a pipeline folder that is no student."""
    place = expanded(name)
    if place.exists():
        return (place / "model_index.json").is_file() and not is_exported(place)
    return name == SHAPES or any(name in (facts.name, facts.hub_id) for facts in FAMILIES.values())


def check_teacher(place: Path, said: str, hint: str = "") -> None:
    """InputError, in words of what it is, for a path that holds no whole teacher; `said` is option and value."""
    kind = None if (place / "model_index.json").is_file() else _kind(place)
    if kind in ("distill", "align"):
        raise InputError(
            f"{said}: is a student that flashdmd {kind} made, not a teacher",
            hint=hint or f"flashdmd align --from {place} goes on from it, flashdmd export makes a pipeline of it",
        )
    if kind is not None:
        raise InputError(f"{said}: is what flashdmd {kind} left, not a teacher", hint=hint)
    try:
        family_at(place).module.refuse(place)
    except Unfit as error:
        raise InputError(f"{said}: {error}", hint=error.hint or hint) from None


def check_family(recipe: Recipe, teacher: Source) -> None:
    """UsageError when a recipe is for another family than its teacher is of."""
    if (found := family_at(teacher.folder).name) != recipe.family:
        raise UsageError(
            f"family: is {recipe.family}, but the teacher {recipe.teacher} is of the family {found}",
            hint=f"take a recipe of {found}; `flashdmd recipes list` shows all",
        )


def _kind(folder: Path) -> str | None:
    """The kind of a finished result of this package; None for any other folder."""
    from flashdmd_cli.runs.manifest import MANIFEST, read_manifest

    if not (folder / MANIFEST).is_file():
        return None
    try:
        return read_manifest(folder).kind
    except InputError:
        return None  # another program's file of that name
