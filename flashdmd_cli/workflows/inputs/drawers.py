"""Loading of what `sample`, `eval` and `demo` draw with: a student, a teacher with a sampler, or a preset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flashdmd_cli.families.files import Source
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import find_run, is_checkpoint
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import recipe_of, whole_folder
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.families import drawing_place, load_family
from flashdmd_cli.workflows.inputs.family_drawer import TEACHER_STEPS, FamilyDrawer, check_steps
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
    from flashdmd_cli.evaluation.generate import Sampler
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.teacher import TeacherRecord

SAMPLERS = ("few_step", "ddim", "stochastic")
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


def pipeline_drawer(
    name: str,
    sampler: Sampler | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    parts: Parts | None = None,
    place: Place | None = None,
    reporter: Reporter | None = None,
) -> FamilyDrawer:
    """A teacher, with its recipe's guidance unless given, or a student that was exported as a pipeline.

    `name` is a pipeline folder, a checkpoint file, a hub id or the short name of a teacher.
    """
    folder = find_teacher(name, "--from", reporter=reporter)
    source = with_parts(folder, parts or Parts(), reporter)
    if is_exported(folder):
        if sampler not in (None, "few_step"):
            raise UsageError(
                f"--sampler {sampler}: is for teachers", hint="students are sampled with few_step; leave it out"
            )
        teacher, trained = exported(folder)
        if (length := steps or trained) is None:
            raise UsageError(f"--steps: {folder} does not say how many steps it was trained for", hint="give --steps")
        check_steps("few_step", length)
        family = load_family(source, place)
        return FamilyDrawer(
            folder.name, family, family.teacher, teacher.id, "few_step", length, 1.0, folder, teacher, source,
            trained_steps=trained,
        )  # fmt: skip
    sampler = sampler or "ddim"
    if sampler == "few_step":
        raise UsageError("--sampler few_step: is for students", hint="a teacher takes ddim or stochastic")
    return as_teacher(load_family(source, place), name, folder, sampler, steps, guidance, source=source)


def as_teacher(
    family: Family,
    name: str,
    folder: Path,
    sampler: Sampler,
    steps: int | None = None,
    guidance: float | None = None,
    record: TeacherRecord | None = None,
    source: Source | None = None,
) -> FamilyDrawer:
    """The teacher of a family that is already loaded.

    `record` and `source` save looking up what is known: the teacher's hashes, and the files of the family if these are
    not just `folder`.
    """
    from flashdmd_cli.runs.recipe import load_recipe

    steps = steps or (TEACHER_STEPS if sampler == "ddim" else STUDENT_STEPS)
    check_steps(sampler, steps)
    weight = load_recipe(default_distill_recipe(folder)).dm.shown_guidance if guidance is None else guidance
    title = f"{Path(name).name.removesuffix('.safetensors')}-{sampler}-{steps}"
    source = source or Source(folder)
    record = record or teacher_record(name, source)
    return FamilyDrawer(title, family, family.teacher, name, sampler, steps, weight, folder, record, source)


def load_drawer(
    source: str | Path | None,
    sampler_name: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    parts: Parts | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
    model: str | None = None,
    size: tuple[int, int] | None = None,
    beside: Drawer | None = None,
) -> Drawer:
    """Load a checkpoint (default: the newest under ./runs), an exported student, a teacher, or the preset `model`.

    `size` is the height and width of the pictures in pixels (default: the size that the teacher was trained for).
    `beside` is a loaded model whose teacher is used again if it is the same.

    Raises UsageError for an option that does not apply to it, InputError for files that cannot be read.
    """
    reporter = reporter or SilentReporter()
    if model is not None:
        parts = parts or Parts()
        given = {"--from": source, "--sampler": sampler_name, "--steps": steps, "--guidance": guidance,
                 "--vae": parts.vae, "--teacher-config": parts.teacher_config, "--size": size}  # fmt: skip
        drawer: Drawer = load_preset(model, given, device, reporter)
        reporter.say(str(drawer.place))
        return drawer
    if sampler_name is not None and sampler_name not in SAMPLERS:
        raise UsageError(f"--sampler {sampler_name}: unknown", hint=f"one of {', '.join(SAMPLERS)}")
    sampler, place = cast("Sampler | None", sampler_name), drawing_place(device)
    name = None if source is None else str(source)
    if name is not None and not is_checkpoint(expanded(name)):
        found = pipeline_drawer(name, sampler, steps, guidance, parts, place, reporter)
    else:
        found = student_drawer(find_run(name), sampler, steps, guidance, None, parts, place, reporter, beside)
    if name is None:
        reporter.say(f"from {found.folder}")
    if beside is None:
        reporter.say(str(found.place))
    return found if size is None else found.with_size(size)


def load_preset(model: str, given: Mapping[str, object], device: str | None, reporter: Reporter) -> Drawer:
    """The drawer of a preset; UsageError if any of the `given` options, which a preset decides itself, has a value."""
    from flashdmd_cli.workflows.inputs.presets import preset_drawer

    if flags := [flag for flag, value in given.items() if value is not None]:
        raise UsageError(
            f"{flags[0]}: does not go with --model, whose preset decides it",
            hint="a copy of the preset with other values works too: --model FILE.yaml",
        )
    return preset_drawer(model, device, reporter)


def student_drawer(
    folder: Path,
    sampler: Sampler | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    family: Family | None = None,
    parts: Parts | None = None,
    place: Place | None = None,
    reporter: Reporter | None = None,
    beside: Drawer | None = None,
) -> FamilyDrawer:
    """The student of a checkpoint, on the grid that it was trained on unless `steps` says otherwise.

    Its files are first verified against the manifest: pictures of damaged weights could be taken for a result. The
    teacher is `family`, or that of `beside` if it is loaded from the same files, else it is loaded.
    """
    from flashdmd_cli.runs.manifest import CHECKPOINTS

    manifest = whole_folder(folder, CHECKPOINTS, "--from", "flashdmd distill")
    if sampler not in (None, "few_step"):
        raise UsageError(
            f"--sampler {sampler}: is for teachers", hint="students are sampled with few_step; leave it out"
        )
    if guidance not in (None, 1.0):
        raise UsageError(f"--guidance {guidance:g}: a student has its guidance built in", hint="leave it out")
    recipe = recipe_of(manifest, f"--from {folder}")
    length = steps or recipe.grid.steps
    check_steps("few_step", length)
    record = manifest.teacher or teacher_record(recipe.teacher, find_source(recipe.teacher, recipe.model, reporter))
    source = find_source_again(record, recipe.model, f"--from {folder}", parts, reporter)
    if family is None and isinstance(beside, FamilyDrawer) and beside.source == source:
        family = beside.family
    family = family or load_family(source, place)
    try:
        net = family.load_student(folder / "student").base.to(family.device).view()
    except (OSError, ValueError) as error:
        raise InputError(f"--from {folder}: student/ cannot be read: {str(error).splitlines()[0]}") from error
    return FamilyDrawer(
        folder.name, family, net, recipe.teacher, "few_step", length, 1.0, folder, record, source,
        trained_steps=recipe.grid.steps,
    )  # fmt: skip
