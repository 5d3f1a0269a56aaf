"""Which teacher: where it was found, and what it is, whatever it is called and wherever it lies.

What it is, is said by SHA-256 over the files that it is loaded from, one for each part of the pipeline, so that an
error can name the part. Files and not tensors, so that it can be compared before anything is loaded, and costs nothing
the second time: huggingface_hub names what it downloads by this very hash, and that of other large files is remembered
with their size, times and inode. A teacher that was saved anew in other files counts as another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flashdmd_cli.runs.errors import WriteError
from flashdmd_cli.runs.files import sha256_file, write_text_atomically
from flashdmd_cli.runs.hub import files_below, pipeline_files

WORTH_REMEMBERING = 64_000_000
"""Bytes from which hashing a file takes long enough to remember the result."""


class TeacherRecord(BaseModel):
    """Which teacher."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    id: str
    """As it was typed: a name that ships, a hub id, or a path."""
    path: str | None = None
    """Absolute path, of a teacher that was given by its path."""
    hub: str | None = None
    """`owner/name` on the hub."""
    revision: str | None = None
    """Commit on the hub."""
    hash: str | None = None
    """SHA-256 over `parts`."""
    parts: dict[str, str] = {}
    """Folder or file of the pipeline -> SHA-256 over the files in it that are loaded."""


def content(teacher: Path, networks: Sequence[str], settings: Sequence[str]) -> dict[str, str]:
    """The hash of each part of a pipeline folder, or that of a checkpoint of one file.

    `networks` are the folders with weights, `settings` those without.
    """
    if teacher.is_file():
        return {"checkpoint": sha256_remembered(teacher)}
    present = files_below(teacher)
    files, lacking = pipeline_files(present, networks, settings)
    # What this does not know as a pipeline's is told apart by all that it holds.
    files += [name for name in present if f"{name.split('/')[0]}/" in lacking and name not in files]
    parts: dict[str, list[str]] = {part: [] for part in (*networks, *settings)}
    for name in sorted(files):
        parts.setdefault(name.split("/")[0], []).append(f"{name} {sha256_remembered(teacher / name)}\n")
    return {part: hashlib.sha256("".join(rows).encode()).hexdigest() for part, rows in parts.items() if rows}


def _content_beside(place: Path) -> str:
    """The hash of configurations, vocabularies and weights in a folder, or of a file."""
    if place.is_file():
        return sha256_remembered(place)
    names = sorted(name for name in files_below(place) if name.endswith((".json", ".txt", ".safetensors")))
    rows = "".join(f"{name} {sha256_remembered(place / name)}\n" for name in names)
    return hashlib.sha256(rows.encode()).hexdigest()


def record(
    name: str,
    teacher: Path,
    networks: Sequence[str],
    settings: Sequence[str],
    hub: str | None = None,
    beside: Mapping[str, Path | None] | None = None,
) -> TeacherRecord:
    """The record of the teacher that was typed as `name` and found at `teacher`; `hub` is its id if it came from one.

    `networks` and `settings` as in `content`. `beside`: option -> folder or file of what is read together with it.

    A path is recorded where `name` is one: what ships or was downloaded is found by its name anywhere.
    """
    parts = content(teacher, networks, settings)
    parts |= {option: _content_beside(place) for option, place in (beside or {}).items() if place is not None}
    rows = "".join(f"{part} {digest}\n" for part, digest in sorted(parts.items()))
    revision = teacher.name if hub and teacher.parent.name == "snapshots" else None
    typed = Path(os.path.expanduser(name))
    path = str(typed.absolute()) if hub is None and typed.exists() and typed.samefile(teacher) else None
    return TeacherRecord(
        id=name, path=path, hub=hub, revision=revision, parts=parts, hash=hashlib.sha256(rows.encode()).hexdigest()
    )


def difference(before: TeacherRecord, now: TeacherRecord) -> str:
    """The parts in which two teachers differ, `unet and vae`; empty when they are the same.

    Two downloads of one commit are the same, though one may be of the float16 and one of the float32 files. A record
    without parts, of an earlier version, says nothing.
    """
    if not before.parts or (before.hub and (before.hub, before.revision) == (now.hub, now.revision)):
        return ""
    names = dict.fromkeys([*before.parts, *now.parts])
    differing = [part for part in names if before.parts.get(part) != now.parts.get(part)]
    return " and ".join([", ".join(differing[:-1]), differing[-1]] if len(differing) > 1 else differing)


def sha256_remembered(path: Path) -> str:
    """SHA-256 of a file's contents; of a large file that has not changed since, without reading it again."""
    if named := _blob_name(path):
        return named
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = _note(path) if status.st_size >= WORTH_REMEMBERING else None
    if note is not None and note.is_file():
        try:
            *seen, digest = json.loads(note.read_text(encoding="utf-8"))
            if seen == stamp:
                return str(digest)
        except (OSError, ValueError):
            pass
    digest = sha256_file(path)
    if note is not None:
        try:
            write_text_atomically(note, json.dumps([*stamp, digest]))
        except WriteError:
            pass  # a cache that cannot be written costs time, no more
    return digest


def _blob_name(path: Path) -> str | None:
    """The SHA-256 by which huggingface_hub's cache names a large file: it links to `blobs/<sha256>`."""
    if not path.is_symlink():
        return None
    target = Path(os.readlink(path))
    return target.name if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name) else None


def _note(path: Path) -> Path | None:
    """Where the hash of a file is remembered: in huggingface_hub's folder for what libraries keep; None without one."""
    from huggingface_hub import cached_assets_path

    try:
        folder = cached_assets_path("flashdmd", namespace="sha256")
    except (OSError, ValueError, RuntimeError):
        return None
    return folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
