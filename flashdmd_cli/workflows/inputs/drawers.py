"""What `sample`, `eval` and `demo` draw with: a student from its checkpoint, or a teacher with one of its samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flashdmd_cli.families.files import Source
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import find_run, is_checkpoint
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import recipe_of, whole_folder
from flashdmd_cli.workflows.inputs.families import drawing_place, load_family
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
class Drawer:
    """A network with everything that decides what it draws."""

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
    def is_student(self) -> bool:
        """Whether it was distilled."""
        return self.sampler == "few_step"

    @property
    def place(self) -> Place:
        """Where it draws."""
        from flashdmd_cli.runs.device import Place

        return Place(self.family.device.type, self.family.precision)

    @property
    def batch(self) -> int:
        """Pictures that go through the network at once, unless something else is asked for."""
        return 32 if self.family.latent_shape[-1] <= 64 else 4

    def draw(self, captions: Sequence[str], seed: int, reporter: Reporter | None = None) -> Tensor:
        """A picture (3, H, W) on [-1, 1] for every caption; picture i has the same noise whatever draws it."""
        reporter = reporter or SilentReporter()
        reporter.progress(0, len(captions))
        return self.draw_from(seed, captions, 0, reporter.progress)

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
        """Pictures `first`, `first` + 1, ... of a longer list, (B, 3, H, W): the same as if all were drawn at once.

        `progress(done, B)` is called after each batch of them, `step(num)` after `num` of their steps. `keys` name the
        noise of each instead of `seed` and `first`; `batch` pictures go through the network at once.
        """
        from flashdmd_cli.evaluation.generate import generate

        family, way = self.family, (self.sampler, self.steps, self.guidance)
        return generate(
            family, self.net, captions, seed, *way,
            first_index=first, keys=keys, batch=batch or self.batch, progress=progress, step=step,
        )  # fmt: skip

    def step_counter(self, num_pictures: int, reporter: Reporter) -> Callable[[int], None]:
        """What `draw_from` calls for each step, so that progress is seen where few pictures take long."""
        done, total = 0, num_pictures * self.steps
        reporter.progress(0, total)

        def count(num: int) -> None:
            nonlocal done
            done += num
            reporter.progress(done, total)

        return count

    def identity(self) -> dict[str, object]:
        """What decides the pictures: two drawers with the same identity draw the same from the same seed.

        By content, not by name: hashes of the files that the family was loaded from, and of a student's manifest.
        """
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
        """What a result says of how its pictures were drawn."""
        return {
            "from": str(self.folder),
            "teacher": self.teacher,
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
        }


def exported(folder: Path) -> tuple[TeacherRecord, int | None]:
    """Whose student an exported pipeline holds and for how many steps, from the manifest beside it, where there is one.

    The scheduler cannot tell: one configuration serves every grid.
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
) -> Drawer:
    """A teacher, with its recipe's guidance unless given, or a student that was exported as a pipeline."""
    folder = find_teacher(name, "--from", reporter=reporter)
    source = with_parts(folder, parts or Parts(), reporter)
    if is_exported(folder):
        if sampler not in (None, "few_step"):
            raise UsageError(f"--sampler {sampler}: is a teacher's", hint="a student is sampled few_step; leave it out")
        teacher, trained = exported(folder)
        if (length := steps or trained) is None:
            raise UsageError(f"--steps: {folder} does not say how many steps it was trained for", hint="give --steps")
        check_steps("few_step", length)
        family = load_family(source, place)
        return Drawer(folder.name, family, family.teacher, teacher.id, "few_step", length, 1.0, folder, teacher, source)
    sampler = sampler or "ddim"
    if sampler == "few_step":
        raise UsageError("--sampler few_step: is a student's", hint="a teacher takes ddim or stochastic")
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
) -> Drawer:
    """The teacher of a family that is loaded already; `record` where it is known what teacher that is, `source` where
    it was loaded from more than `folder`."""
    from flashdmd_cli.runs.recipe import load_recipe

    steps = steps or (TEACHER_STEPS if sampler == "ddim" else STUDENT_STEPS)
    check_steps(sampler, steps)
    weight = load_recipe(default_distill_recipe(folder)).dm.guidance if guidance is None else guidance
    title = f"{Path(name).name.removesuffix('.safetensors')}-{sampler}-{steps}"
    source = source or Source(folder)
    record = record or teacher_record(name, source)
    return Drawer(title, family, family.teacher, name, sampler, steps, weight, folder, record, source)


def load_drawer(
    source: str | Path | None,
    sampler_name: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    parts: Parts | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Drawer:
    """A checkpoint (default: the newest under ./runs), an exported student or a teacher, loaded to draw with.

    UsageError for an option that the other of student and teacher takes, InputError for what cannot be read.
    """
    reporter = reporter or SilentReporter()
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


def student_drawer(
    folder: Path,
    sampler: Sampler | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    family: Family | None = None,
    parts: Parts | None = None,
    place: Place | None = None,
    reporter: Reporter | None = None,
) -> Drawer:
    """The student of a checkpoint, on the grid that it was trained on unless `steps` says otherwise.

    Its files are held against the manifest first: a figure or a picture of damaged weights would look like a result.
    """
    from flashdmd_cli.runs.manifest import CHECKPOINTS

    manifest = whole_folder(folder, CHECKPOINTS, "--from", "flashdmd distill")
    if sampler not in (None, "few_step"):
        raise UsageError(f"--sampler {sampler}: is a teacher's", hint="a student is sampled few_step; leave it out")
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
    return Drawer(folder.name, family, net, recipe.teacher, "few_step", length, 1.0, folder, record, source)


def check_steps(sampler: Sampler, steps: int) -> None:
    """UsageError for a number of steps that a sampler cannot take."""
    from flashdmd_cli.core.grid import VP_STEPS

    if sampler == "ddim":
        if not 1 <= steps <= 1000:
            raise UsageError(f"--steps {steps}: must be from 1 to 1000", hint=f"try --steps {TEACHER_STEPS}")
    elif steps not in VP_STEPS:
        raise UsageError(f"--steps {steps}: must be one of {', '.join(map(str, VP_STEPS))} for {sampler}")
