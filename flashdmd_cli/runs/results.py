"""Checkpoints as inputs of other commands; their files are verified against the manifest first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.folder import find_run, owner, refuse_part

if TYPE_CHECKING:
    from flashdmd_cli.runs.manifest import Manifest
    from flashdmd_cli.runs.recipe import Recipe


RETIRED = ("train.resolution", "train.generator_ema", "optim.warmup")
"""Recipe keys of earlier versions, which are irrelevant for a finished student."""


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a finished student, its manifest and recipe."""

    folder: Path
    manifest: Manifest
    recipe: Recipe


def whole_folder(folder: Path, kinds: Sequence[str], flag: str, writer: str) -> Manifest:
    """The manifest of a finished, undamaged folder of one of `kinds`; InputError otherwise.

    `flag` is the option that named the folder, `writer` the command that writes such folders, for messages.
    """
    from flashdmd_cli.runs.manifest import damaged_files, read_manifest

    refuse_part(folder, f"{flag} {folder}")
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        raise InputError(f"{flag} {error.message}", hint=error.hint) from error
    if manifest.kind not in kinds:
        article = "an" if manifest.kind[0] in "aeiou" else "a"
        inside = next((each for each in sorted(folder.iterdir()) if each.is_dir() and owner(each) in kinds), None)
        raise InputError(
            f"{flag} {folder}: is {article} {manifest.kind} folder, not a {' or '.join(kinds)} one",
            hint=f"{writer} writes one" if inside is None else f"name {inside}",
        )
    if problems := damaged_files(folder, manifest):
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(
            f"{flag} {folder}: {problems[0]}{more}", hint=f"flashdmd inspect {folder} shows all; make it again"
        )
    return manifest


def stage1_checkpoint(folder: Path | str, flag: str = "--from") -> Checkpoint:
    """The distilled student in `folder`; InputError if it is anything else, unfinished or damaged.

    An aligned student is refused: with adapters, its state has only those of the alignment, which stand on those of
    the distillation, and its iterations do not count those before, so that random numbers would be used twice.
    """
    folder = Path(folder)
    if owner(folder) == "align":
        raise InputError(
            f"{flag} {folder}: is an align folder, and a student is aligned only once",
            hint="the command that wrote it continues it with more --iterations; or name the distilled student",
        )
    manifest = whole_folder(folder, ("distill",), flag, "flashdmd distill")
    return Checkpoint(folder, manifest, recipe_of(manifest, f"{flag} {folder}"))


def recipe_of(manifest: Manifest, source: str) -> Recipe:
    """The recipe in a student's manifest, without keys that no longer exist.

    Raises InputError, with a message that starts with `source`, if it cannot be read.
    """
    from pydantic import ValidationError

    from flashdmd_cli.runs.recipe import Recipe

    values = {
        key: {name: field for name, field in value.items() if f"{key}.{name}" not in RETIRED}
        if isinstance(value, dict)
        else value
        for key, value in manifest.recipe.items()
    }
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{source}: its recipe cannot be read: {where}: {first['msg']}") from error


def data_of(checkpoint: Checkpoint) -> Path:
    """The data folder that a checkpoint was trained on, if it still exists unchanged, else the latest under ./runs."""
    from flashdmd_cli.runs.files import sha256_file
    from flashdmd_cli.runs.manifest import MANIFEST, read_manifest

    for parent in checkpoint.manifest.parents:
        folder = Path(os.path.normpath(checkpoint.folder / parent.path))
        if (folder / MANIFEST).is_file() and sha256_file(folder / MANIFEST) == parent.sha256:
            if read_manifest(folder).kind == "data":
                return folder
    try:
        return find_run(None, "data", flag="--data")
    except InputError as error:
        own = ", ".join(each.path for each in checkpoint.manifest.parents)
        raise InputError(
            f"--data: what {checkpoint.folder} was trained on ({own}, seen from there) is gone or has changed, "
            f"and there is no other under ./runs",
            hint=error.hint,
        ) from None
