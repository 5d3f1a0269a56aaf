"""The models that `--compare` draws with, beside the one of `--from`."""

from __future__ import annotations

from collections.abc import Sequence

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.drawers import Found, FoundPreset, find_drawer, find_teacher_drawer, load_found
from flashdmd_cli.workflows.inputs.family_drawer import FamilyDrawer

TEACHER = "teacher"


def find_beside(first: Found | FoundPreset, names: Sequence[str], reporter: Reporter) -> list[Found]:
    """One model for each of `names`, which are as in `--from`, or `teacher` for the teacher of the student `first`.

    They draw pictures of the same size as `first`. Raises the errors of `find_drawer`, and UsageError for the teacher
    of a model that is no student. Like `find_drawer`, it loads nothing and does not import torch.
    """
    size = first.size if isinstance(first, Found) else None
    return [find_teacher_of(first, reporter) if name == TEACHER else _named(name, size, reporter) for name in names]


def _named(name: str, size: tuple[int, int] | None, reporter: Reporter) -> Found:
    try:
        found = find_drawer(name, reporter=reporter, size=size)
    except (InputError, UsageError) as error:
        raise type(error)(
            error.message.replace("--from", "--compare", 1), error.hint.replace("--from", "--compare")
        ) from error
    assert isinstance(found, Found)
    return found


def find_teacher_of(student: Found | FoundPreset, reporter: Reporter) -> Found:
    """The teacher of a student, with its deterministic sampler; UsageError if there is none."""
    if isinstance(student, FoundPreset):
        raise UsageError(f"--compare teacher: {student.model} is a preset", hint="name another model, as in --from")
    if not student.is_student:
        raise UsageError(
            f"--compare teacher: {student.name} is no student of this package", hint="name another model, as in --from"
        )
    source = student.source
    if student.student is None:  # the network of an exported student stands in the teacher's place
        from flashdmd_cli.runs.manifest import MANIFEST, read_manifest
        from flashdmd_cli.runs.results import recipe_of
        from flashdmd_cli.workflows.inputs.teachers import find_source_again

        if not (student.folder / MANIFEST).is_file() or student.record is None:
            raise UsageError(
                f"--compare teacher: {student.folder} does not say which teacher it was distilled from",
                hint="name the teacher, as in --from",
            )
        model = recipe_of(read_manifest(student.folder), f"--from {student.folder}").model
        source = find_source_again(student.record, model, f"--from {student.folder}", reporter=reporter)
    return find_teacher_drawer(student.teacher, source.weights, "ddim", record=student.record, source=source).sized(
        student.size
    )


def load_all(
    first: Found | FoundPreset, others: Sequence[Found], device: str | None, reporter: Reporter
) -> list[Drawer]:
    """Load the models; those beside the first share its teacher if it is the same."""
    loaded = load_found(first, device, reporter)
    drawers = [loaded]
    for found in others:
        # The teacher of a student is loaded with it, unless the student was exported and takes its place.
        is_its_teacher = isinstance(first, Found) and first.student is not None and found.source == first.source
        if is_its_teacher and isinstance(loaded, FamilyDrawer) and found.student is None:
            drawers.append(found.load(family=loaded.family))
        else:
            drawers.append(load_found(found, device, reporter, loaded))
    return drawers
