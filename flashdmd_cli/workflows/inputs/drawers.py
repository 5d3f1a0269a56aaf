"""Loading of what `sample`, `eval` and `demo` draw with: a student, a teacher with a sampler, or a preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flashdmd_cli.families.files import Source
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import find_run, is_checkpoint
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import recipe_of, whole_folder
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.families import drawing_place, load_family
from flashdmd_cli.workflows.inputs.kinds import is_exported, is_shapes
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
    from torch import Tensor

    from flashdmd_cli.evaluation.generate import NoiseKey, Sampler
    from flashdmd_cli.families.base import View
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.teacher import TeacherRecord

SAMPLERS = ("few_step", "ddim", "stochastic")
TEACHER_STEPS = 30
STUDENT_STEPS = 4


@dataclass(frozen=True)
class FamilyDrawer(Drawer):
    """A student or teacher of this package's model families, with its sampler."""

    name: str
    family: Family
    net: View
    teacher: str
    sampler: Sampler
    steps: int
    guidance: float
    folder: Path
    """Checkpoint or pipeline folder."""
    record: TeacherRecord
    source: Source
    """The files that the family was loaded from."""

    @property
    def family_name(self) -> str:
        return self.family.name

    @property
    def tokenizers(self) -> Sequence[Any]:
        return self.family.tokenizers

    @property
    def draws_shapes(self) -> bool:
        return is_shapes(self.family.source)

    @property
    def is_student(self) -> bool:
        """Whether it was distilled, or is the teacher's denoiser otherwise."""
        return self.sampler == "few_step"

    @property
    def place(self) -> Place:
        from flashdmd_cli.runs.device import Place

        return Place(self.family.device.type, self.family.precision)

    @property
    def batch(self) -> int:
        return 32 if self.family.latent_shape[-1] <= 64 else 4

    def draw_from(
        self,
        seed: int,
        captions: Sequence[str],
        first: int,
        progress: Callable[[int, int], None] | None = None,
        step: Callable[[int], None] | None = None,
        keys: Sequence[NoiseKey] | None = None,
        batch: int | None = None,
    ) -> Tensor:
        from flashdmd_cli.evaluation.generate import generate

        family, way = self.family, (self.sampler, self.steps, self.guidance)
        return generate(
            family, self.net, captions, seed, *way,
            first_index=first, keys=keys, batch=batch or self.batch, progress=progress, step=step,
        )  # fmt: skip

    def identity(self) -> dict[str, object]:
        """Includes the hashes of the files that the family was loaded from, and of a student's manifest."""
        from flashdmd_cli import __version__
        from flashdmd_cli.runs.files import sha256_file
        from flashdmd_cli.runs.manifest import MANIFEST

        manifest = self.folder / MANIFEST
        return {
            "flashdmd": __version__,
            "loaded": teacher_record(self.teacher, self.source).hash,
            "student": sha256_file(manifest) if manifest.is_file() else None,
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
            "device": self.place.device,
            "precision": self.place.precision,
        }

    def facts(self) -> dict[str, object]:
        return {
            "from": str(self.folder),
            "teacher": self.teacher,
            "sampler": self.sampler,
            "steps": self.steps,
            "nfe": self.steps * (1 if self.guidance == 1 else 2),
            "guidance": self.guidance,
        }


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
            folder.name, family, family.teacher, teacher.id, "few_step", length, 1.0, folder, teacher, source
        )
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
    weight = load_recipe(default_distill_recipe(folder)).dm.mean_guidance if guidance is None else guidance
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
) -> Drawer:
    """Load a checkpoint (default: the newest under ./runs), an exported student, a teacher, or the preset `model`.

    Raises UsageError for an option that does not apply to it, InputError for files that cannot be read.
    """
    reporter = reporter or SilentReporter()
    if model is not None:
        parts = parts or Parts()
        given = {"--from": source, "--sampler": sampler_name, "--steps": steps, "--guidance": guidance,
                 "--vae": parts.vae, "--teacher-config": parts.teacher_config}  # fmt: skip
        drawer: Drawer = load_preset(model, given, device, reporter)
        reporter.say(str(drawer.place))
        return drawer
    if sampler_name is not None and sampler_name not in SAMPLERS:
        raise UsageError(f"--sampler {sampler_name}: unknown", hint=f"one of {', '.join(SAMPLERS)}")
    sampler, place = cast("Sampler | None", sampler_name), drawing_place(device)
    name = None if source is None else str(source)
    if name is not None and not is_checkpoint(expanded(name)):
        drawer = pipeline_drawer(name, sampler, steps, guidance, parts, place, reporter)
    else:
        drawer = student_drawer(find_run(name), sampler, steps, guidance, None, parts, place, reporter)
    if name is None:
        reporter.say(f"from {drawer.folder}")
    reporter.say(str(drawer.place))
    return drawer


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
) -> FamilyDrawer:
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
    length = steps or recipe.grid.steps
    check_steps("few_step", length)
    record = manifest.teacher or teacher_record(recipe.teacher, find_source(recipe.teacher, recipe.model, reporter))
    source = find_source_again(record, recipe.model, f"--from {folder}", parts, reporter)
    family = family or load_family(source, place)
    try:
        net = family.load_student(folder / "student").base.to(family.device).view()
    except (OSError, ValueError) as error:
        raise InputError(f"--from {folder}: student/ cannot be read: {str(error).splitlines()[0]}") from error
    return FamilyDrawer(folder.name, family, net, recipe.teacher, "few_step", length, 1.0, folder, record, source)


def check_steps(sampler: Sampler, steps: int) -> None:
    """Raise UsageError for a number of steps that a sampler does not support."""
    from flashdmd_cli.core.grid import VP_STEPS

    if sampler == "ddim":
        if not 1 <= steps <= 1000:
            raise UsageError(f"--steps {steps}: must be from 1 to 1000", hint=f"try --steps {TEACHER_STEPS}")
    elif steps not in VP_STEPS:
        raise UsageError(f"--steps {steps}: must be one of {', '.join(map(str, VP_STEPS))} for {sampler}")
