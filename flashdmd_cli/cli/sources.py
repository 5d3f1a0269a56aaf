"""Where a teacher comes from: the embedded one, a path, or the hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flashdmd_cli.cli.kinds import SHAPES, check_teacher
from flashdmd_cli.cli.output import current
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.hub import Wanted, fetch, parse_id, pipeline_files

SDXL, SDXL_ID = "sdxl", "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_SIZE = "6.9 GB in float16"


def hub_id(teacher: str) -> tuple[str, str | None] | None:
    """(`owner/name`, revision) of a teacher on the hub; None for one that ships, or that is a path here."""
    if teacher == SDXL or teacher.startswith(f"{SDXL}@"):
        return parse_id(SDXL_ID + teacher.removeprefix(SDXL))
    return None if teacher == SHAPES or expanded(teacher).exists() else parse_id(teacher)


def find_teacher(name: str, flag: str = "--teacher", hint: str | None = None) -> Path:
    """The pipeline folder or checkpoint file behind `shapes-sdxl`, `sdxl`, a hub id or a path.

    InputError when it cannot be had, or is something else.

    What is on the hub and not on this machine is downloaded. `hint` takes the place of the advice to name another
    teacher with `flag`.
    """
    if name == SHAPES:
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset(SHAPES)
        except FileNotFoundError as error:
            raise InputError(f"{flag} {SHAPES}: {error}") from None
    if (asked := hub_id(name)) is not None:
        local = (
            hint
            if hint is not None
            else f"{flag} PATH takes a local pipeline folder, {flag} {SHAPES} is the small one that ships"
        )
        known = SDXL_SIZE if asked[0] == SDXL_ID else ""
        output = current()
        wanted = Wanted(f"{flag} {name}", *asked, size=known, hint=local, or_path=asked[0] != SDXL_ID)
        folder = fetch(wanted, partial(pipeline_files, half_first=True), output.say, output.draws_bars)
    elif not (folder := expanded(name)).exists():
        told = f"{flag} takes {SDXL}, {SHAPES}, a hub id (owner/name[@revision]) or a pipeline folder or file"
        raise InputError(f"{flag} {name}: no such folder", hint=hint or told)
    check_teacher(folder, f"{flag} {name}", hint or "")
    return folder
