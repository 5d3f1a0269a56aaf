"""Where a result comes from: its input folders, theirs, and the teacher, as lines of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import plain
from flashdmd_cli.runs.manifest import Manifest, read_manifest
from flashdmd_cli.runs.teacher import TeacherRecord


def lineage(folder: Path, manifest: Manifest, depth: int = 0) -> list[str]:
    """The folder, its parents (indented, as far as they still exist) and the teacher, one a line."""
    indent = "  " * depth + ("└ " if depth else "")
    lines = [f"{indent}{manifest.kind}  {folder}"]
    for parent in plain(manifest.parents):
        path = Path(parent["path"])
        at = Path(os.path.normpath(folder / path))
        try:
            lines += lineage(at, read_manifest(at), depth + 1)
        except (InputError, OSError):
            lines.append("  " * (depth + 1) + f"└ {path}  (no longer there; sha256 {str(parent['sha256'])[:12]})")
    if manifest.teacher and (depth == 0 or manifest.kind == "distill"):
        lines.append("  " * (depth + 1) + teacher_line(manifest.teacher))
    return lines


def lineage_of_run(kind: str, folder: Path, inputs: Sequence[Path], teacher: TeacherRecord) -> list[str]:
    """The same for a run without a manifest, which is not finished; `inputs` are its result folders."""
    lines = [f"{kind}  {folder}"]
    for path in inputs:
        try:
            lines += lineage(path, read_manifest(path), 1)
        except (InputError, OSError):
            lines.append(f"  └ {path}")
    return [*lines, f"  {teacher_line(teacher)}"]


def teacher_line(teacher: TeacherRecord) -> str:
    """Name and content of a teacher."""
    return f"└ teacher  {teacher.id}  (content {(teacher.hash or 'unknown')[:12]})"
