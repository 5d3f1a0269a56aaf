"""The models that `--compare` draws with, beside the one of `--from`."""

from __future__ import annotations

from collections.abc import Sequence

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.drawers import as_teacher, load_drawer
from flashdmd_cli.workflows.inputs.family_drawer import FamilyDrawer

TEACHER = "teacher"


def drawers_beside(first: Drawer, names: Sequence[str], device: str | None, reporter: Reporter) -> list[Drawer]:
    """One model for each of `names`, which are as in `--from`, or `teacher` for the teacher of the student `first`.

    They draw pictures of the same size as `first`. Raises the errors of `load_drawer`, and UsageError for the teacher
    of a model that is no student.
    """
    size = first.size if isinstance(first, FamilyDrawer) else None
    return [
        teacher_of(first, reporter) if name == TEACHER else _named(name, first, size, device, reporter)
        for name in names
    ]


def _named(name: str, first: Drawer, size: tuple[int, int] | None, device: str | None, reporter: Reporter) -> Drawer:
    try:
        return load_drawer(name, device=device, reporter=reporter, size=size, beside=first)
    except (InputError, UsageError) as error:
        raise type(error)(error.message.replace("--from", "--compare", 1), error.hint) from error


def teacher_of(student: Drawer, reporter: Reporter) -> FamilyDrawer:
    """The teacher of a student, with its deterministic sampler; UsageError if there is none."""
    if not isinstance(student, FamilyDrawer) or not student.is_student:
        raise UsageError(
            f"--compare teacher: {student.name} is no student of this package", hint="name another model, as in --from"
        )
    if student.net != student.family.teacher:
        teacher = as_teacher(
            student.family,
            student.teacher,
            student.source.weights,
            "ddim",
            record=student.record,
            source=student.source,
        )
    else:  # the network of an exported student stands in the teacher's place
        from flashdmd_cli.runs.manifest import MANIFEST, read_manifest
        from flashdmd_cli.runs.results import recipe_of
        from flashdmd_cli.workflows.inputs.families import load_family
        from flashdmd_cli.workflows.inputs.teachers import find_source_again

        if not (student.folder / MANIFEST).is_file():
            raise UsageError(
                f"--compare teacher: {student.folder} does not say which teacher it was distilled from",
                hint="name the teacher, as in --from",
            )
        model = recipe_of(read_manifest(student.folder), f"--from {student.folder}").model
        source = find_source_again(student.record, model, f"--from {student.folder}", reporter=reporter)
        family = load_family(source, student.place)
        teacher = as_teacher(family, student.teacher, source.weights, "ddim", record=student.record, source=source)
    return teacher if student.size is None else teacher.with_size(student.size)
