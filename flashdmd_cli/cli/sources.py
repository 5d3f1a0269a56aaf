"""Where weights come from: a teacher, a checkpoint, or the newest one; and whose folder `--out` is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flashdmd_cli.cli.kinds import SHAPES, check_teacher
from flashdmd_cli.models.layout import missing_parts
from flashdmd_cli.runs.errors import InputError, UsageError

SDXL_ID = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_SIZE = "13.9 GB in float32"
RUNS = Path("runs")
WRITERS = {"data": "prepare-data shapes", "distill": "distill", "align": "align", "reward": "reward train"}
"""Which command writes a kind of folder."""
MARK = ".flashdmd"
"""File that says which command a folder belongs to while it has no manifest yet."""


def cached_folder(hub_id: str) -> Path | None:
    """The snapshot of a hub model on this machine, without asking the network; None when it is not complete."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = (cache / f"models--{hub_id.replace('/', '--')}" / "snapshots").glob("*")
    complete = [folder for folder in snapshots if not missing_parts(folder)]
    return max(complete, key=lambda folder: folder.stat().st_mtime, default=None)


def find_teacher(name: str, flag: str = "--teacher") -> Path:
    """The pipeline folder or checkpoint file behind `shapes-sdxl`, `sdxl`, a cached hub id, or a path; InputError when
    it is not here, or is something else."""
    if name == SHAPES:
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset(SHAPES)
        except FileNotFoundError as error:
            raise InputError(f"{flag} {SHAPES}: {error}") from None
    folder = Path(name).expanduser()
    if name != "sdxl" and folder.exists():
        check_teacher(folder, f"{flag} {name}")
        return folder
    hub_id = SDXL_ID if name == "sdxl" else name
    if name != "sdxl" and (hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~"))):
        raise InputError(f"{flag} {name}: no such folder", hint=f"{flag} takes sdxl, {SHAPES} or a pipeline folder")
    if found := cached_folder(hub_id):
        return found
    size = f" ({SDXL_SIZE})" if hub_id == SDXL_ID else ""
    raise InputError(
        f"{flag} {name}: the weights of {hub_id}{size} are not on this machine",
        hint=f"{flag} PATH takes a local pipeline folder, {flag} {SHAPES} is the small one that ships",
    )


def find_run(name: str | None, *kinds: str, flag: str = "--from") -> Path:
    """A folder as given, or the newest of its kinds (default: those that hold a student) under ./runs."""
    from flashdmd_cli.runs.manifest import CHECKPOINTS, newest

    kinds = kinds or CHECKPOINTS
    if name is not None:
        folder = Path(name).expanduser()
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
    from flashdmd_cli.runs.manifest import MANIFEST, read_manifest

    if (out / MARK).is_file():
        return (out / MARK).read_text(encoding="utf-8").strip()
    return read_manifest(out).kind if (out / MANIFEST).is_file() else None


def claim(out: Path, kind: str, yes: bool = False, resumes: bool = True) -> Path:
    """Make `out` this command's folder; UsageError when it holds something that is not this command's.

    A folder of the same kind is kept, so that the same command resumes; `yes` empties it first. Where a command does
    not resume, the old manifest goes, since the result is no longer whole. What others wrote is never deleted.
    """
    from flashdmd_cli.runs.files import write_text_atomically, writing
    from flashdmd_cli.runs.manifest import MANIFEST

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    # Another rank of the same command may be writing the mark at this moment.
    if any(not path.name.startswith(f".{MARK}.") for path in out.iterdir()):
        if (found := owner(out)) != kind:
            whose = f"belongs to a {found} result" if found else f"is not empty, and holds no {kind} result"
            raise UsageError(f"--out {out}: {whose}", hint="choose another folder")
        with writing(out):
            if yes:
                shutil.rmtree(out)
                out.mkdir()
            elif not resumes:
                (out / MANIFEST).unlink(missing_ok=True)
    if not (out / MARK).is_file():
        write_text_atomically(out / MARK, kind + "\n")
    return out
