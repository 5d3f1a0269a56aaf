"""Determines what kind of model a path contains, by its manifest and configuration, not by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source, read_json, same_denoiser, same_model
from flashdmd_cli.families.registry import FAMILIES, family_at, family_of
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import find_run, owner, refuse_part
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.shapes.assets import asset

SHAPES = "shapes-sdxl"
"""Name of the embedded world's first teacher on the command line."""
EMBEDDED = (SHAPES, "shapes-sd3")
"""Names of the embedded world's teachers, one per family."""


def embedded_teacher(teacher: str | Path) -> str | None:
    """Name of the embedded teacher that `teacher` is: a shipped one, or one with the same layer sizes and vocabulary.

    None for any other teacher.
    """
    if teacher in EMBEDDED:
        return str(teacher)
    place = expanded(teacher)
    return next((name for name, folder, net in _shipped() if same_model(place, folder, net)), None)


def is_shapes(teacher: str | Path) -> bool:
    """Whether a teacher is of the embedded world."""
    return embedded_teacher(teacher) is not None


def teacher_of_student(student: Path) -> str | None:
    """Name of the embedded teacher whose architecture a student's network has; its own teacher need not exist."""
    return next((name for name, folder, net in _shipped() if same_denoiser(student, folder / net)), None)


def _shipped() -> Iterator[tuple[str, Path, str]]:
    """Name, folder and denoiser's subfolder of each embedded teacher that is installed."""
    for name in EMBEDDED:
        try:
            folder = asset(name)
        except FileNotFoundError:
            continue
        yield name, folder, family_at(folder).networks[0]


def is_exported(folder: Path) -> bool:
    """Whether a pipeline folder is an exported student, according to its manifest or its scheduler's configuration."""
    return owner(folder) == "export" or family_at(folder).module.is_student(folder)


def find_student(name: str | None, *kinds: str) -> Path:
    """The student's folder that `--from` names, or the newest one under ./runs.

    Raises `InputError` for a teacher.
    """
    if name is not None and _is_teacher(name):
        raise InputError(
            f"--from {name}: is a teacher, not a student",
            hint=f"flashdmd distill --teacher {name} makes a student; name its folder",
        )
    return find_run(name, *kinds)


def _is_teacher(name: str) -> bool:
    """Whether this is a teacher's name for `--teacher`, or a pipeline folder that is not a student."""
    place = expanded(name)
    if place.exists():
        return (place / "model_index.json").is_file() and not is_exported(place)
    return name in EMBEDDED or any(name in (facts.name, *facts.licenses) for facts in FAMILIES.values())


def check_teacher(place: Path, option: str, hint: str = "") -> None:
    """Raise `InputError`, which names what it is instead, if a path is not a complete teacher.

    `option` is the option with its value, for the message.
    """
    is_pipeline = (place / "model_index.json").is_file()
    if not is_pipeline:
        refuse_part(place, option, hint or ("" if option.startswith("--teacher ") else None))
    kind = None if is_pipeline else owner(place)
    if kind in ("distill", "align"):
        raise InputError(
            f"{option}: is a student that flashdmd {kind} made, not a teacher",
            hint=hint or f"flashdmd align --from {place} trains it further, flashdmd export makes a pipeline of it",
        )
    if kind is not None:
        raise InputError(f"{option}: is a result of flashdmd {kind}, not a teacher", hint=hint)
    try:
        if (place / "model_index.json").is_file():
            family_of(read_json(place / "model_index.json"))
        family_at(place).module.refuse(place)
    except Unfit as error:
        raise InputError(f"{option}: {error}", hint=error.hint or hint) from None


def check_family(recipe: Recipe, teacher: Source) -> None:
    """Raise `UsageError` if a recipe is for another family than its teacher's."""
    if (found := family_at(teacher.folder).name) != recipe.family:
        raise UsageError(
            f"family: is {recipe.family}, but the teacher {recipe.teacher} is of the family {found}",
            hint=f"choose a recipe for {found}; `flashdmd recipes list` shows all",
        )
