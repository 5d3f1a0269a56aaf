"""Result folders: finding them, what is in them, and reserving `--out` for a command."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded, write_text_atomically, writing
from flashdmd_cli.runs.lock import LOCK, hold
from flashdmd_cli.runs.manifest import CHECKPOINTS, MANIFEST, STATES, Manifest, newest, read_manifest

RUNS = Path("runs")
WRITERS = {"data": "prepare-data SOURCE --out DIR", "distill": "distill", "align": "align", "reward": "reward train"}
"""Kind of folder -> command that writes it."""
MARK = ".flashdmd"
"""File with the kind of a folder that has no manifest yet."""


def find_run(name: str | None, *kinds: str, flag: str = "--from") -> Path:
    """The folder `name`, or without one the latest of the given kinds (default: with a student) under ./runs."""
    kinds = kinds or CHECKPOINTS
    if name is not None:
        folder = expanded(name)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.is_file() else "no such folder"
            raise InputError(f"{flag} {name}: {what}", hint=f"flashdmd {WRITERS[kinds[0]]} writes one")
        return folder
    first = "flashdmd demo, or " if kinds[0] == "distill" else ""
    hint = f"name a folder, or make one with: {first}flashdmd {WRITERS[kinds[0]]}"
    missing = InputError(f"{flag}: nothing given, and no finished {kinds[0]} folder under ./{RUNS}", hint=hint)
    if not RUNS.is_dir():
        raise missing
    try:
        return newest(RUNS, *kinds)
    except (FileNotFoundError, InputError):
        raise missing from None


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a finished result of this package, as opposed to a pipeline folder."""
    return (folder / "manifest.json").is_file() and not (folder / "model_index.json").is_file()


def owner(out: Path) -> str | None:
    """The kind of result in a folder, finished or not; None if no command of this package wrote it."""
    if (out / MARK).is_file():
        return (out / MARK).read_text(encoding="utf-8").strip()
    try:
        return read_manifest(out).kind if (out / MANIFEST).is_file() else None
    except InputError:  # other programs write files of this name too
        return None


def refuse_part(folder: Path, option: str, hint: str | None = None) -> None:
    """InputError if `folder` is a part of a result, as RUN/student is of RUN, and no result itself, finished or not.

    `option` is what named the folder, for the message; the default hint is to name the whole result.
    """
    if not folder.is_dir() or owner(folder) is not None:
        return
    for whole in list(folder.parents)[:2]:
        if (kind := owner(whole)) is not None:
            hint = f"name the whole folder: {whole}" if hint is None else hint
            raise InputError(f"{option}: is a part of {whole}, a result of flashdmd {kind}", hint=hint)


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """What is in a result's folder and in no manifest, so that no hash of it is known.

    States of a training are named one by one, all else by its name at the top level. Results within the folder are left
    out, because they have manifests of their own.
    """
    listed = {record.path for record in manifest.files} | {MANIFEST, MARK, LOCK}
    found = set()
    for root, folders, files in os.walk(folder):
        folders[:] = [
            name for name in folders if not (Path(root, name, MANIFEST).is_file() and owner(Path(root, name)))
        ]
        for place in (Path(root, name).relative_to(folder) for name in files):
            if place.as_posix() not in listed:
                found.add("/".join(place.parts[: 2 if place.parts[0] == STATES else 1]))
    return sorted(found)


def claim(out: Path, kind: str, yes: bool = False, resumes: bool = True, shared: bool = False) -> Path:
    """Create and lock `out` for this command; UsageError if it has other contents or another process uses it.

    A folder of the same kind is kept, so that the command can resume; `yes` empties it first. If the command does not
    resume, the old manifest is deleted, because the result becomes incomplete. Files of others are never deleted.
    With `shared`, several processes may use the folder, if all of them pass `shared`.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        refuse_of_others(out, kind)
        hold(out, shared=shared)
        contents = refuse_of_others(out, kind)  # another command may have started there before the lock was taken
        if yes:
            for path in contents:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        else:
            refuse_links(out, out)
        if not yes and not resumes:
            (out / MANIFEST).unlink(missing_ok=True)
    if not (out / MARK).is_file():
        write_text_atomically(out / MARK, kind + "\n")
    return out


def check_out(out: Path, kind: str) -> None:
    """UsageError if `claim` would refuse `out`; changes nothing. For commands whose inputs take long to load."""
    if out.is_dir():
        refuse_of_others(out, kind)


def refuse_links(folder: Path, out: Path) -> None:
    """UsageError if `folder`, in the result folder `out`, contains a link, pipe or device at any depth.

    A command would follow a link when it opens its own files, and overwrite what is somewhere else.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:  # another process that shares the folder has deleted it
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            refuse_links(Path(entry.path), out)
        elif not entry.is_file(follow_symlinks=False):
            what = "a link" if entry.is_symlink() else "neither a file nor a folder"
            raise UsageError(
                f"--out {out}: {Path(entry.path).relative_to(out)} is {what}, and only files are written there",
                hint="delete it, or choose another folder",
            )


def refuse_of_others(out: Path, kind: str) -> list[Path]:
    """The paths in a folder except its lock; UsageError if it is not empty and not of this kind."""
    # Ignore the temporary file of a mark that another process of the same command is writing.
    contents = [path for path in out.iterdir() if path.name != LOCK and not path.name.startswith(f".{MARK}.")]
    if contents and (other := owner(out)) != kind:
        problem = f"belongs to a {other} result" if other else f"is not empty, and holds no {kind} result"
        raise UsageError(f"--out {out}: {problem}", hint="choose another folder")
    return contents
