"""Export of a student to formats that other programs read, compared with the student before it counts as done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.export import FORMATS
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import saving_weights, sha256_file, write_text_atomically
from flashdmd_cli.runs.folder import RUNS, check_out, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import (
    CHECKPOINTS,
    MANIFEST,
    ExportRecord,
    FormatRecord,
    Manifest,
    parent_record,
    read_manifest,
    write_manifest,
)
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import recipe_of, whole_folder
from flashdmd_cli.runs.upload import upload
from flashdmd_cli.workflows.card import CARD, PREVIEW, card
from flashdmd_cli.workflows.export_check import check_formats, prompt_for
from flashdmd_cli.workflows.export_options import check_options, check_student
from flashdmd_cli.workflows.inputs.families import hush
from flashdmd_cli.workflows.inputs.kinds import find_student, is_shapes
from flashdmd_cli.workflows.inputs.teachers import find_source, find_source_again, teacher_record
from flashdmd_cli.workflows.training import ADAPTER

if TYPE_CHECKING:
    from flashdmd_cli.export.card import Use
    from flashdmd_cli.export.job import File, Format, Job

RANK = 64
"""Of a LoRA that approximates a student, unless another is given."""


@dataclass(frozen=True)
class Export:
    """What `export` wrote, or would write."""

    out: Path
    files: list[tuple[str, int | None]]
    """Path and size in bytes; None in a dry run for a small text that is known only when it is written."""
    manifest: Manifest | None
    """None for a dry run."""
    steps: int
    """Number of sampling steps, to be used with guidance scale 1."""
    use: list[Use]
    """For each format the lines of Python that load it and draw a picture."""
    url: str | None = None
    """Where it was pushed to."""
    estimated: frozenset[str] = frozenset()
    """Of a dry run, the files whose size is that of their weights alone."""
    readers: Mapping[str, str] = field(default_factory=dict)
    """Of a dry run, the programs that read a file, where several files of a model have different readers."""


@releasing()
def export(
    student: Path | str | None = None,
    out: Path | str | None = None,
    *,
    form: str | Sequence[str] = "diffusers",
    dtype: Sequence[str] = (),
    rank: int | None = None,
    push: str | None = None,
    dry_run: bool = False,
    replace: bool = False,
    reporter: Reporter | None = None,
) -> Export:
    """Write the student in the folder `student` to `out` in each of the formats `form` (`export.FORMATS`).

    Reads the student's network (None: the newest under ./runs) and the teacher's files, which are downloaded if they
    are not on this machine, one tensor at a time. Each format is then loaded by stock diffusers, and a picture of it is
    compared with the student's picture from the same noise. `dtype`: number formats of the weights
    (`export_options.WRITTEN`; several write variants of the `diffusers` format; none: each format's own choice). `rank`
    is that of a LoRA that approximates a student whose weights were all trained. `push` is the `owner/name` of a
    repository on the hub, to which the folder is uploaded. `dry_run` only lists the files. `out` is ./runs/export-NAME
    by default; an export with other options in it is replaced only with `replace`.

    Raises `UsageError` for unknown values or an `out` with other contents, `InputError` if an input cannot be read,
    `NumericalError` if an export draws another picture than the student.
    """
    reporter, began = reporter or SilentReporter(), time.monotonic()
    forms = [form] if isinstance(form, str) else list(form)
    check_options(forms, dtype, rank, push)
    checkpoint = find_student(None if student is None else str(student))
    if student is None:
        reporter.say(f"from {checkpoint}")
    folder = Path(out) if out is not None else RUNS / f"export-{checkpoint.name}"
    if not dry_run:
        check_out(folder, "export")
    made = whole_folder(checkpoint, CHECKPOINTS, "--from", "flashdmd distill")
    check_student(checkpoint, rank)
    rank = rank or RANK
    named = [name for name in FORMATS if name in forms]
    options = {"formats": named, "dtype": list(dtype), "rank": rank}
    finished = None if dry_run else finished_export(folder, checkpoint, options, replace)
    job = new_job(checkpoint, made, tuple(dtype), rank, reporter)
    # All that needs no torch is checked above: its import takes seconds, on a busy machine minutes.
    from flashdmd_cli.export.card import uses
    from flashdmd_cli.export.job import copy_of
    from flashdmd_cli.workflows.teacher_names import teacher_names

    formats = {name: cast("Format", import_module(FORMATS[name])) for name in named}
    files = all_files(formats, job)
    if (checkpoint / PREVIEW).is_file():
        files[PREVIEW] = copy_of(checkpoint / PREVIEW)
    here, anywhere = teacher_names(made, job)
    use = uses(formats, job, push or str(folder), push is not None, here, prompt_for(job))
    if dry_run:
        listed = [(file.path, file.size) for file in files.values()] + [(CARD, None), (MANIFEST, None)]
        estimated = frozenset(file.path for file in files.values() if file.is_estimate)
        # ComfyUI and A1111 recognise a model by its published sizes, and read nothing of a small one.
        known = not is_shapes(job.source.folder)
        readers = {file.path: file.readers for file in files.values() if file.readers and known}
        return Export(folder, listed, None, job.steps, use, estimated=estimated, readers=readers)
    claim(folder, "export", yes=finished is None)
    if finished is None:
        write_files(folder, files, reporter)
        records = check_formats(formats, job, folder, reporter)
        manifest = described(made, checkpoint, folder, options, records, time.monotonic() - began)
    else:
        reporter.say(f"{folder}: contains this export already")
        manifest = finished
    # The card may be read on another machine: its lines run in its own folder, wherever that is, or from the hub.
    on_card = uses(formats, job, push or ".", push is not None, anywhere, prompt_for(job))
    in_comfyui = any("ComfyUI" in file.readers for file in files.values())
    text = card(manifest, job, checkpoint, on_card, push is not None, in_comfyui)
    if finished is None or (folder / CARD).read_text(encoding="utf-8") != text:
        reporter.phase("writing the model card, and hashing all files")
        write_text_atomically(folder / CARD, text)
        manifest = write_manifest(folder, manifest.model_copy(update={"files": []}))
    paths = [each.path for each in manifest.files]
    sizes: list[tuple[str, int | None]] = [(each.path, each.size) for each in manifest.files]
    sizes.append((MANIFEST, (folder / MANIFEST).stat().st_size))
    url = None
    if push is not None:
        reporter.phase(f"uploading {len(paths)} files to {push}")
        url = upload(folder, push, paths, f"{job.title}, exported by flashdmd")
    return Export(folder, sizes, manifest, job.steps, use, url)


def new_job(checkpoint: Path, made: Manifest, dtypes: tuple[str, ...], rank: int, reporter: Reporter) -> Job:
    """What to export; looks up the teacher's files, then imports torch, and loads nothing."""
    from flashdmd_cli.families.registry import family_named

    if made.grid is None:
        raise InputError(f"--from {checkpoint}: its manifest has no grid", hint="distil again")
    recipe = recipe_of(made, f"--from {checkpoint}")
    record = made.teacher or teacher_record(recipe.teacher, find_source(recipe.teacher, recipe.model, reporter))
    source = find_source_again(record, recipe.model, f"--from {checkpoint}", reporter=reporter)
    facts = family_named(made.family or recipe.family)
    # Of a folder or file only its name: the path is of no use on other machines, and may have the name of a person.
    teacher = record.hub or Path(record.path or record.id).name
    stem = Path(teacher).name.removesuffix(".safetensors")
    from flashdmd_cli.export.job import Job  # imports torch, after the teacher was found

    hush()
    adapter = checkpoint / ADAPTER
    return Job(
        facts=facts,
        source=replace(source, denoiser=checkpoint / "student"),
        adapter=adapter if adapter.is_file() else None,
        is_base_rounded=recipe.model.weights == "int8",
        steps=recipe.grid.steps,
        scheduler=made.grid.scheduler,
        scheduler_config=made.grid.config,
        title=f"{stem}-{recipe.grid.steps}step",
        teacher=teacher,
        license=made.license,
        dtypes=dtypes,
        rank=rank,
    )


def all_files(formats: dict[str, Format], job: Job) -> dict[str, File]:
    """The files of all formats by their paths, in the order in which they are written."""
    files: dict[str, File] = {}
    for name, each in formats.items():
        try:
            files |= {file.path: file for file in each.files(job)}
        except Unfit as error:
            raise UsageError(f"--format {name}: {error}", hint=error.hint) from None
    return files


def finished_export(folder: Path, checkpoint: Path, options: dict[str, Any], replaces: bool) -> Manifest | None:
    """The manifest of a finished export of this student with these options in `folder`; None if there is none.

    Raises `UsageError` if the folder has a finished export of something else, unless it `replaces` that.
    """
    if replaces or not (folder / MANIFEST).is_file() or (found := read_manifest(folder)).kind != "export":
        return None
    same = [parent.sha256 for parent in found.parents] == [sha256_file(checkpoint / MANIFEST)]
    if same and found.export is not None and found.export.options == options:
        return whole_folder(folder, ("export",), "--out", "flashdmd export")
    raise UsageError(f"--out {folder}: holds another export", hint="--yes replaces it; or choose another --out")


def write_files(folder: Path, files: dict[str, File], reporter: Reporter) -> None:
    """Write all files, with progress in files."""
    reporter.phase(f"writing {len(files)} files to {folder}", "file")
    with saving_weights(folder):
        for number, file in enumerate(files.values()):
            reporter.progress(number, len(files))
            at = folder / file.path
            at.parent.mkdir(parents=True, exist_ok=True)
            file.write(at)
    reporter.progress(len(files), len(files))


def described(
    made: Manifest,
    checkpoint: Path,
    folder: Path,
    options: dict[str, Any],
    records: dict[str, FormatRecord],
    seconds: float,
) -> Manifest:
    """The manifest of the export of a student with the manifest `made`."""
    return Manifest(
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
        wall_seconds=seconds,
        license=made.license,
        export=ExportRecord(options=options, formats=records),
    )
