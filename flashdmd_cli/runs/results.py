"""Checkpoints as inputs: what a distilled student is, held against its manifest before anything is built on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.folder import find_run

if TYPE_CHECKING:
    from flashdmd_cli.runs.manifest import Manifest
    from flashdmd_cli.runs.recipe import Recipe


RETIRED = ("train.resolution", "train.generator_ema", "optim.warmup")
"""Recipe keys of earlier versions, which do not matter to a finished student."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished student with what is known of it."""

    folder: Path
    manifest: Manifest
    recipe: Recipe


def whole_folder(folder: Path, kinds: Sequence[str], flag: str, writer: str) -> Manifest:
    """The manifest of a finished folder of one of `kinds` whose files are what they were; InputError otherwise."""
    from flashdmd_cli.runs.manifest import damaged_files, read_manifest

    try:
        manifest = read_manifest(folder)
    except InputError as error:
        raise InputError(f"{flag} {error.message}", hint=error.hint) from error
    if manifest.kind not in kinds:
        article = "an" if manifest.kind[0] in "aeiou" else "a"
        raise InputError(
            f"{flag} {folder}: is {article} {manifest.kind} folder, not a {' or '.join(kinds)} one",
            hint=f"{writer} writes one",
        )
    if problems := damaged_files(folder, manifest):
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(
            f"{flag} {folder}: {problems[0]}{more}", hint=f"flashdmd inspect {folder} shows all; make it again"
        )
    return manifest


def stage1_checkpoint(folder: Path | str, flag: str = "--from") -> Checkpoint:
    """The distilled student in `folder`; InputError when it is anything else, unfinished or damaged."""
    folder = Path(folder)
    manifest = whole_folder(folder, ("distill",), flag, "flashdmd distill")
    return Checkpoint(folder, manifest, recipe_of(manifest, f"{flag} {folder}"))


def recipe_of(manifest: Manifest, of: str) -> Recipe:
    """The recipe of a student, without the keys that later versions gave up; InputError that begins with `of`."""
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
        raise InputError(f"{of}: its recipe cannot be read: {where}: {first['msg']}") from error


def data_of(checkpoint: Checkpoint) -> Path:
    """The data that a checkpoint was trained on, where it still is, or the newest under ./runs."""
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
