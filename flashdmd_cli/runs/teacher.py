"""Identity of a teacher: a hash of its files, which does not depend on its name or location.

There is one SHA-256 per part of the pipeline, so that errors can name the part. Files rather than tensors are hashed,
so that teachers can be compared before loading, and hashes can be cached: huggingface_hub names downloads by their
hash, and hashes of other large files are stored with their size, times and inode. A teacher that is saved again in
other files counts as a different one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.runs.errors import WriteError
from flashdmd_cli.runs.files import sha256_file, write_text_atomically
from flashdmd_cli.runs.hub import files_below, pipeline_files

WORTH_REMEMBERING = 64_000_000
"""File size in bytes from which the hash is cached."""


class TeacherRecord(BaseModel):
    """Name, location and content hashes of a teacher."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    id: str
    """As given by the user: name of an embedded teacher, hub id, or path."""
    path: str | None = None
    """Absolute path, if the teacher was given by its path."""
    hub: str | None = None
    """`owner/name` on the hub."""
    revision: str | None = None
    """Commit on the hub."""
    hash: str | None = None
    """SHA-256 over `parts`."""
    parts: dict[str, str] = {}
    """Part of the pipeline (folder or file) -> SHA-256 over those of its files that are loaded."""


def content(teacher: Path, networks: Sequence[str], settings: Sequence[str]) -> dict[str, str]:
    """The hash of each part of a pipeline folder, or of a single checkpoint file.

    `networks` are the folders with weights, `settings` those without.
    """
    if teacher.is_file():
        return {"checkpoint": sha256_remembered(teacher)}
    present = files_below(teacher)
    files, lacking = pipeline_files(present, networks, settings)
    # Of parts without recognised weights, all files are hashed.
    files += [name for name in present if f"{name.split('/')[0]}/" in lacking and name not in files]
    parts: dict[str, list[str]] = {part: [] for part in (*networks, *settings)}
    for name in sorted(files):
        parts.setdefault(name.split("/")[0], []).append(f"{name} {sha256_remembered(teacher / name)}\n")
    return {part: hashlib.sha256("".join(rows).encode()).hexdigest() for part, rows in parts.items() if rows}


def _content_beside(place: Path) -> str:
    """The hash of a file, or of all configurations, vocabularies and weights in a folder."""
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
    """The record of the teacher `name`, whose files are at `teacher`; `hub` is its hub id if it was downloaded.

    `networks` and `settings` as in `content`. `beside`: option -> additional folder or file that is loaded with it.

    The path is recorded only if `name` is one: embedded and downloaded teachers are found by name on any machine.
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
    """The parts in which two teachers differ, for example `unet and vae`; empty if they are the same.

    Two downloads of one commit count as the same, even if one is in float16 and one in float32. Records without parts,
    from earlier versions, are not compared.
    """
    if not before.parts or (before.hub and (before.hub, before.revision) == (now.hub, now.revision)):
        return ""
    names = dict.fromkeys([*before.parts, *now.parts])
    differing = [part for part in names if before.parts.get(part) != now.parts.get(part)]
    return " and ".join([", ".join(differing[:-1]), differing[-1]] if len(differing) > 1 else differing)


def sha256_remembered(path: Path) -> str:
    """SHA-256 of a file; cached for large files that have not changed."""
    if named := _blob_name(path):
        return named
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = _note(path) if status.st_size >= WORTH_REMEMBERING else None
    if note is not None and note.is_file():
        try:
            *seen, digest = parse_json(note.read_text(encoding="utf-8"))
            if seen == stamp:
                return str(digest)
        except (OSError, ValueError):
            pass
    digest = sha256_file(path)
    if note is not None:
        try:
            write_text_atomically(note, json.dumps([*stamp, digest]))
        except WriteError:
            pass  # the cache is optional
    return digest


def _blob_name(path: Path) -> str | None:
    """The SHA-256 of a large file in huggingface_hub's cache, where it is a link to `blobs/<sha256>`."""
    if not path.is_symlink():
        return None
    target = Path(os.readlink(path))
    return target.name if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name) else None


def _note(path: Path) -> Path | None:
    """File in huggingface_hub's assets cache for the hash of `path`; None if there is no such cache."""
    from huggingface_hub import cached_assets_path

    try:
        folder = cached_assets_path("flashdmd", namespace="sha256")
    except (OSError, ValueError, RuntimeError):
        return None
    return folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
