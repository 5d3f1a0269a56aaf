"""Finds and loads what `sample`, `eval` and `demo` draw with: a student, a teacher with a sampler, or a preset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from flashdmd_cli.evaluation.names import Sampler
from flashdmd_cli.families.files import Source
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import find_run, is_checkpoint
from flashdmd_cli.runs.nearest import unknown
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import recipe_of, whole_folder
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.families import check_device
from flashdmd_cli.workflows.inputs.family_drawer import TEACHER_STEPS, FamilyDrawer, check_steps
from flashdmd_cli.workflows.inputs.found import Found, FoundPreset
from flashdmd_cli.workflows.inputs.kinds import is_exported
from flashdmd_cli.workflows.inputs.teachers import (
    Parts,
    find_source,
    find_source_again,
    find_teacher,
    teacher_record,
    with_parts,
)
from flashdmd_cli.workflows.recipes import default_distill_recipe

if TYPE_CHECKING:
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.teacher import TeacherRecord

STUDENT_STEPS = 4


def exported(folder: Path) -> tuple[TeacherRecord, int | None]:
    """The teacher of an exported student and the number of steps that it was trained for, from its manifest.

    Without a manifest the number is None: the scheduler's configuration is the same for every grid.
    """
    from flashdmd_cli.runs.manifest import MANIFEST

    if not (folder / MANIFEST).is_file():
        return teacher_record(str(folder), folder), None
    manifest = whole_folder(folder, ("export",), "--from", "flashdmd export")
    return manifest.teacher or teacher_record(str(folder), folder), int(manifest.recipe["grid"]["steps"])


def find_pipeline(
    name: str,
    sampler: Sampler | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    parts: Parts | None = None,
    reporter: Reporter | None = None,
) -> Found:
    """A teacher, with its recipe's guidance unless given, or a student that was exported as a pipeline.

    `name` is a pipeline folder, a checkpoint file, a hub id or the short name of a teacher.
    """
    folder = find_teacher(name, "--from", reporter=reporter)
    source = with_parts(folder, parts or Parts(), reporter)
    if is_exported(folder):
        teacher, trained = exported(folder)
        if (length := trained if steps is None else steps) is None:
            raise UsageError(f"--steps: {folder} does not say how many steps it was trained for", hint="give --steps")
        check_student(sampler, length, guidance)
        return Found(folder.name, teacher.id, "few_step", length, 1.0, folder, source, teacher, trained_steps=trained)
    sampler = sampler or "ddim"
    if sampler == "few_step":
        raise UsageError("--sampler few_step: is for students", hint="a teacher takes ddim or stochastic")
    return find_teacher_model(name, folder, sampler, steps, guidance, source=source)


def find_teacher_model(
    name: str,
    folder: Path,
    sampler: Sampler,
    steps: int | None = None,
    guidance: float | None = None,
    record: TeacherRecord | None = None,
    source: Source | None = None,
) -> Found:
    """The teacher at `folder` with a sampler.

    `record` and `source` save looking up what is known: the teacher's hashes, and its files if they are not just
    `folder`.
    """
    from flashdmd_cli.runs.recipe import load_recipe

    steps = (TEACHER_STEPS if sampler == "ddim" else STUDENT_STEPS) if steps is None else steps
    check_steps(sampler, steps)
    weight = load_recipe(default_distill_recipe(folder)).dm.shown_guidance if guidance is None else guidance
    title = f"{Path(name).name.removesuffix('.safetensors')}-{sampler}-{steps}"
    return Found(title, name, sampler, steps, weight, folder, source or Source(folder), record)


def as_teacher(
    family: Family, name: str, folder: Path, sampler: Sampler, steps: int | None = None, guidance: float | None = None
) -> FamilyDrawer:
    """The teacher of a family that is already loaded from `folder`."""
    return find_teacher_model(name, folder, sampler, steps, guidance).load_with(family)


def find_student_model(
    folder: Path,
    sampler: Sampler | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    parts: Parts | None = None,
    reporter: Reporter | None = None,
) -> Found:
    """The student of a checkpoint, on the grid that it was trained on unless `steps` says otherwise.

    Its files are first verified against the manifest: pictures of damaged weights could be taken for a result.
    """
    from flashdmd_cli.runs.manifest import CHECKPOINTS

    manifest = whole_folder(folder, CHECKPOINTS, "--from", "flashdmd distill")
    recipe = recipe_of(manifest, f"--from {folder}")
    length = recipe.grid.steps if steps is None else steps
    check_student(sampler, length, guidance)
    record = manifest.teacher or teacher_record(recipe.teacher, find_source(recipe.teacher, recipe.model, reporter))
    source = find_source_again(record, recipe.model, f"--from {folder}", parts, reporter)
    return Found(
        folder.name, recipe.teacher, "few_step", length, 1.0, folder, source, record, folder / "student",
        trained_steps=recipe.grid.steps,
    )  # fmt: skip


def check_student(sampler: Sampler | None, steps: int, guidance: float | None) -> None:
    """UsageError for a sampler, a number of steps or a guidance that no student takes."""
    if sampler not in (None, "few_step"):
        raise UsageError(
            f"--sampler {sampler}: is for teachers", hint="students are sampled with few_step; leave it out"
        )
    check_steps("few_step", steps)
    if guidance not in (None, 1.0):
        raise UsageError(f"--guidance {guidance:g}: a student has its guidance built in", hint="leave it out")


def student_drawer(folder: Path, family: Family | None = None) -> FamilyDrawer:
    """The student of a checkpoint, loaded; `family` is its teacher, if that is loaded already."""
    found = find_student_model(folder)
    return found.load() if family is None else found.load_with(family)


def find_model(
    source: str | Path | None = None,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    parts: Parts | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
    model: str | None = None,
    size: tuple[int, int] | None = None,
) -> Found | FoundPreset:
    """A checkpoint (default: the newest under ./runs), an exported student, a teacher, or the preset `model`.

    `size` is the height and width of the pictures in pixels (default: the size that the teacher was trained for).
    Nothing is loaded, and torch is not imported.

    Raises UsageError for an option that does not apply to it, InputError for files that cannot be read.
    """
    reporter = reporter or SilentReporter()
    check_device(device)
    if model is not None:
        parts = parts or Parts()
        given = {"--from": source, "--sampler": sampler, "--steps": steps, "--guidance": guidance,
                 "--vae": parts.vae, "--teacher-config": parts.teacher_config, "--size": size}  # fmt: skip
        return find_preset(model, given)
    samplers = get_args(Sampler)
    if sampler is not None and sampler not in samplers:
        raise unknown("--sampler", sampler, samplers)
    known, name = cast("Sampler | None", sampler), None if source is None else str(source)
    if name is not None and not is_checkpoint(expanded(name)):
        return find_pipeline(name, known, steps, guidance, parts, reporter).sized(size)
    found = find_student_model(find_run(name), known, steps, guidance, parts, reporter).sized(size)
    if name is None:
        reporter.say(f"from {found.folder}")
    return found


def find_preset(model: str, given: Mapping[str, object]) -> FoundPreset:
    """A preset; UsageError if any of the `given` options, which a preset decides itself, has a value."""
    from flashdmd_cli.evaluation.baselines.preset import read_preset

    if flags := [flag for flag, value in given.items() if value is not None]:
        raise UsageError(
            f"{flags[0]}: does not go with --model, whose preset decides it",
            hint="a copy of the preset with other values works too: --model FILE.yaml",
        )
    return FoundPreset(model, read_preset(model))


def load_found(found: Found | FoundPreset, device: str | None = None, reporter: Reporter | None = None) -> Drawer:
    """Load what `find_model` found, and report the device."""
    reporter = reporter or SilentReporter()
    drawer = found.load(device, reporter)
    reporter.say(str(drawer.place))
    return drawer


def load_all(
    found: Found | FoundPreset, others: Sequence[Found | FoundPreset], device: str | None, reporter: Reporter
) -> list[Drawer]:
    """Load several models; the others share the teacher of the first if its files are the same."""
    first = load_found(found, device, reporter)
    return [first, *(each.load(device, reporter, first) for each in others)]
