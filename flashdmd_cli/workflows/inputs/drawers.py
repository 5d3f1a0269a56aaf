"""Loading of what `sample`, `eval` and `demo` draw with: a student, a teacher with a sampler, or a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flashdmd_cli.families.files import Source
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import find_run, is_checkpoint
from flashdmd_cli.runs.nearest import nearest
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import recipe_of, whole_folder
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.families import check_device, drawing_place, load_family
from flashdmd_cli.workflows.inputs.family_drawer import TEACHER_STEPS, FamilyDrawer, check_size, check_steps
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


@dataclass(frozen=True)
class Found:
    """A student or teacher to draw with: its files are there and its settings fit. Nothing is loaded."""

    name: str
    teacher: str
    sampler: Sampler
    steps: int
    guidance: float
    folder: Path
    source: Source
    """The files of its family."""
    record: TeacherRecord | None = None
    """None: computed from `source` on loading."""
    student: Path | None = None
    """Folder of the network that takes the place of the teacher's."""
    size: tuple[int, int] | None = None
    trained_steps: int | None = None

    @property
    def is_student(self) -> bool:
        return self.sampler == "few_step"

    def sized(self, size: tuple[int, int] | None) -> Found:
        """The same for pictures of this height and width; UsageError if its networks do not support them."""
        if size is None:
            return self
        check_size(self.source.folder, size)
        return replace(self, size=size)

    def load(
        self, place: Place | None = None, beside: Drawer | None = None, family: Family | None = None
    ) -> FamilyDrawer:
        """Load the networks. A student takes its teacher from `family`, or from `beside` if that has the same files."""
        if self.student is not None and family is None and isinstance(beside, FamilyDrawer):
            family = beside.family if beside.source == self.source else None
        family = family or load_family(self.source, place)
        net = family.teacher
        if self.student is not None:
            try:
                net = family.load_student(self.student).base.to(family.device).view()
            except (OSError, ValueError) as error:
                raise InputError(
                    f"--from {self.folder}: student/ cannot be read: {str(error).splitlines()[0]}"
                ) from error
        return FamilyDrawer(
            self.name, family, net, self.teacher, self.sampler, self.steps, self.guidance, self.folder,
            self.record or teacher_record(self.teacher, self.source), self.source, self.size, self.trained_steps,
        )  # fmt: skip


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
        if sampler not in (None, "few_step"):
            raise UsageError(
                f"--sampler {sampler}: is for teachers", hint="students are sampled with few_step; leave it out"
            )
        teacher, trained = exported(folder)
        if (length := trained if steps is None else steps) is None:
            raise UsageError(f"--steps: {folder} does not say how many steps it was trained for", hint="give --steps")
        check_steps("few_step", length)
        return Found(folder.name, teacher.id, "few_step", length, 1.0, folder, source, teacher, trained_steps=trained)
    sampler = sampler or "ddim"
    if sampler == "few_step":
        raise UsageError("--sampler few_step: is for students", hint="a teacher takes ddim or stochastic")
    return find_teacher_drawer(name, folder, sampler, steps, guidance, source=source)


def find_teacher_drawer(
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
    return find_teacher_drawer(name, folder, sampler, steps, guidance).load(family=family)


def find_student_drawer(
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
    if sampler not in (None, "few_step"):
        raise UsageError(
            f"--sampler {sampler}: is for teachers", hint="students are sampled with few_step; leave it out"
        )
    if guidance not in (None, 1.0):
        raise UsageError(f"--guidance {guidance:g}: a student has its guidance built in", hint="leave it out")
    recipe = recipe_of(manifest, f"--from {folder}")
    length = recipe.grid.steps if steps is None else steps
    check_steps("few_step", length)
    record = manifest.teacher or teacher_record(recipe.teacher, find_source(recipe.teacher, recipe.model, reporter))
    source = find_source_again(record, recipe.model, f"--from {folder}", parts, reporter)
    return Found(
        folder.name, recipe.teacher, "few_step", length, 1.0, folder, source, record, folder / "student",
        trained_steps=recipe.grid.steps,
    )  # fmt: skip


def student_drawer(folder: Path, family: Family | None = None) -> FamilyDrawer:
    """The student of a checkpoint, loaded; `family` is its teacher, if that is loaded already."""
    return find_student_drawer(folder).load(family=family)


@dataclass(frozen=True)
class FoundPreset:
    """A published model to draw with, whose preset can be read. Its files are found, or downloaded, on loading."""

    model: str

    def load(self, device: str | None, reporter: Reporter) -> Drawer:
        """Load its networks on `device`."""
        from flashdmd_cli.workflows.inputs.presets import preset_drawer

        return preset_drawer(self.model, device, reporter)


def find_drawer(
    source: str | Path | None,
    sampler_name: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    parts: Parts | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
    model: str | None = None,
    size: tuple[int, int] | None = None,
) -> Found | FoundPreset:
    """What `load_drawer` loads for these arguments, checked: raises the same errors, and does not import torch."""
    reporter = reporter or SilentReporter()
    check_device(device)
    if model is not None:
        parts = parts or Parts()
        given = {"--from": source, "--sampler": sampler_name, "--steps": steps, "--guidance": guidance,
                 "--vae": parts.vae, "--teacher-config": parts.teacher_config, "--size": size}  # fmt: skip
        return find_preset(model, given)
    if sampler_name is not None and sampler_name not in SAMPLERS:
        near = nearest(sampler_name, SAMPLERS)
        raise UsageError(f"--sampler {sampler_name}: unknown{near}", hint=f"one of {', '.join(SAMPLERS)}")
    sampler, name = cast("Sampler | None", sampler_name), None if source is None else str(source)
    if name is not None and not is_checkpoint(expanded(name)):
        return find_pipeline(name, sampler, steps, guidance, parts, reporter).sized(size)
    found = find_student_drawer(find_run(name), sampler, steps, guidance, parts, reporter).sized(size)
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
    read_preset(model)
    return FoundPreset(model)


def load_found(
    found: Found | FoundPreset, device: str | None, reporter: Reporter | None = None, beside: Drawer | None = None
) -> Drawer:
    """Load what `find_drawer` found. `beside` is a loaded model whose teacher is used again if it is the same."""
    reporter = reporter or SilentReporter()
    if isinstance(found, FoundPreset):
        drawer = found.load(device, reporter)
    else:
        drawer = found.load(drawing_place(device), beside)
    if beside is None:
        reporter.say(str(drawer.place))
    return drawer


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
) -> Drawer:
    """Load a checkpoint (default: the newest under ./runs), an exported student, a teacher, or the preset `model`.

    `size` is the height and width of the pictures in pixels (default: the size that the teacher was trained for).

    Raises UsageError for an option that does not apply to it, InputError for files that cannot be read.
    """
    found = find_drawer(source, sampler_name, steps, guidance, parts, device, reporter, model, size)
    return load_found(found, device, reporter)
