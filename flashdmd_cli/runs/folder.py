"""Folders of results under ./runs: whose one is, the newest of a kind, and making `--out` a command's own."""

from __future__ import annotations

import shutil
from pathlib import Path

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded, write_text_atomically, writing
from flashdmd_cli.runs.lock import LOCK, hold
from flashdmd_cli.runs.manifest import CHECKPOINTS, MANIFEST, newest, read_manifest

RUNS = Path("runs")
WRITERS = {"data": "prepare-data SOURCE --out DIR", "distill": "distill", "align": "align", "reward": "reward train"}
"""Which command writes a kind of folder."""
MARK = ".flashdmd"
"""File that says which command a folder belongs to while it has no manifest yet."""


def find_run(name: str | None, *kinds: str, flag: str = "--from") -> Path:
    """A folder as given, or the newest of its kinds (default: those that hold a student) under ./runs."""
    kinds = kinds or CHECKPOINTS
    if name is not None:
        folder = expanded(name)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.is_file() else "no such folder"
            raise InputError(f"{flag} {name}: {what}", hint=f"flashdmd {WRITERS[kinds[0]]} writes one")
        return folder
    hint = f"name a folder, or make one with: flashdmd {WRITERS[kinds[0]]}"
    missing = InputError(f"{flag}: nothing given, and no finished {kinds[0]} folder under ./{RUNS}", hint=hint)
    if not RUNS.is_dir():
        raise missing
    try:
        return newest(RUNS, *kinds)
    except (FileNotFoundError, InputError):
        raise missing from None


def is_checkpoint(folder: Path) -> bool:
    """A folder that `distill` or `align` finished, in contrast to a pipeline folder."""
    return (folder / "manifest.json").is_file() and not (folder / "model_index.json").is_file()


def owner(out: Path) -> str | None:
    """The kind of result that a folder holds or is to hold; None when no command of this package wrote it."""
    if (out / MARK).is_file():
        return (out / MARK).read_text(encoding="utf-8").strip()
    return read_manifest(out).kind if (out / MANIFEST).is_file() else None


def claim(out: Path, kind: str, yes: bool = False, resumes: bool = True, shared: bool = False) -> Path:
    """Make `out` this command's folder and keep other processes out of it (`shared`: those that do not share it);
    UsageError when it holds something that is not this command's, or another process writes there.

    A folder of the same kind is kept, so that the same command resumes; `yes` empties it first. Where a command does
    not resume, the old manifest goes, since the result is no longer whole. What others wrote is never deleted.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        refuse_of_others(out, kind)
        hold(out, shared=shared)
        held = refuse_of_others(out, kind)  # another command may have begun there between the two
        if yes:
            for path in held:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif not resumes:
            (out / MANIFEST).unlink(missing_ok=True)
    if not (out / MARK).is_file():
        write_text_atomically(out / MARK, kind + "\n")
    return out


def refuse_of_others(out: Path, kind: str) -> list[Path]:
    """What is in a folder, besides its lock; UsageError when it is not of this kind."""
    # Another process of the same command may be writing the mark at this moment.
    held = [path for path in out.iterdir() if path.name != LOCK and not path.name.startswith(f".{MARK}.")]
    if held and (found := owner(out)) != kind:
        whose = f"belongs to a {found} result" if found else f"is not empty, and holds no {kind} result"
        raise UsageError(f"--out {out}: {whose}", hint="choose another folder")
    return held
