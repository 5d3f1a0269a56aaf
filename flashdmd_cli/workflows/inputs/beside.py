"""The models that `--compare` draws with, beside the one of `--from`."""

from __future__ import annotations

from collections.abc import Sequence

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.drawers import find_model, find_teacher_model
from flashdmd_cli.workflows.inputs.found import Found, FoundPreset

TEACHER = "teacher"


def find_beside(first: Found | FoundPreset, names: Sequence[str], reporter: Reporter) -> list[Found | FoundPreset]:
    """One model for each of `names`, which are as in `--from`, or `teacher` for the teacher of the student `first`.

    They draw pictures of the same size as `first`. Raises the errors of `find_model`, and UsageError for the teacher
    of a model that is no student. Like `find_model`, it loads nothing and does not import torch.
    """
    return [
        find_teacher_of(first, reporter) if name == TEACHER else _named(name, first.size, reporter) for name in names
    ]


def _named(name: str, size: tuple[int, int] | None, reporter: Reporter) -> Found | FoundPreset:
    try:
        return find_model(name, reporter=reporter, size=size)
    except (InputError, UsageError) as error:
        raise type(error)(
            error.message.replace("--from", "--compare", 1), error.hint.replace("--from", "--compare")
        ) from error


def find_teacher_of(student: Found | FoundPreset, reporter: Reporter) -> Found:
    """The teacher of a student, with its deterministic sampler; UsageError if there is none."""
    if not isinstance(student, Found) or not student.is_student:
        raise UsageError(
            f"--compare teacher: {student.name} is no student of this package", hint="name another model, as in --from"
        )
    source = student.source
    if student.student is None:  # the network of an exported student stands in the teacher's place
        from flashdmd_cli.runs.manifest import MANIFEST, read_manifest
        from flashdmd_cli.runs.results import recipe_of
        from flashdmd_cli.workflows.inputs.teachers import find_source_again

        if not (student.folder / MANIFEST).is_file():
            raise UsageError(
                f"--compare teacher: {student.folder} does not say which teacher it was distilled from",
                hint="name the teacher, as in --from",
            )
        model = recipe_of(read_manifest(student.folder), f"--from {student.folder}").model
        assert student.record is not None
        source = find_source_again(student.record, model, f"--from {student.folder}", reporter=reporter)
    return find_teacher_model(student.teacher, source.weights, "ddim", record=student.record, source=source).sized(
        student.size
    )
