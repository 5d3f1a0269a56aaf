"""Export of a student to a format that other programs read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from flashdmd_cli.export import FORMATS
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import saving_weights
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import Manifest, parent_record, read_manifest, write_manifest
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.workflows.inputs.drawers import student_drawer
from flashdmd_cli.workflows.inputs.kinds import find_student


@dataclass(frozen=True)
class Export:
    """What `export` wrote."""

    out: Path
    manifest: Manifest
    steps: int
    """Number of sampling steps, to be used with guidance scale 1."""


@releasing()
def export(
    student: Path | str | None = None,
    out: Path | str | None = None,
    *,
    form: str = "diffusers",
    replace: bool = False,
    reporter: Reporter | None = None,
) -> Export:
    """Write the student in the folder `student` to `out` as a stock pipeline (`form`: one of `export.FORMATS`).

    Reads the student's network (None: the newest under ./runs). All other parts of the pipeline are the teacher's,
    which is downloaded if it is not on this machine. `out` is ./runs/export-NAME by default; with `replace`, an
    existing export in it is deleted.

    Raises `UsageError` for an unknown format or an `out` with other contents, `InputError` if an input cannot be read.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form}: unknown", hint=f"one of {', '.join(FORMATS)}")
    reporter, began = reporter or SilentReporter(), time.monotonic()
    checkpoint = find_student(None if student is None else str(student))
    if student is None:
        reporter.say(f"from {checkpoint}")
    drawer, made = student_drawer(checkpoint, reporter=reporter), read_manifest(checkpoint)
    folder = Path(out) if out is not None else RUNS / f"export-{checkpoint.name}"
    claim(folder, "export", replace, resumes=False)
    with saving_weights(folder):
        module, _, function = FORMATS[form].partition(":")
        getattr(import_module(module), function)(drawer.family, drawer.net, drawer.steps, folder)
    manifest = write_manifest(
        folder,
        Manifest(
            kind="export",
            family=made.family,
            grid=made.grid,
            step=made.step,
            images_seen=made.images_seen,
            updates=made.updates,
            teacher=made.teacher,
            parents=[parent_record(checkpoint, folder)],
            weights=made.weights,
            recipe=made.recipe,
            data=made.data,
            seed=made.seed,
            wall_seconds=time.monotonic() - began,
            license=made.license,
        ),
    )
    return Export(folder, manifest, drawer.steps)
