"""`manifest.json`: contents and provenance of a result folder. Written last, so a folder without it is unfinished."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from flashdmd_cli import __version__
from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import sha256_file, write_text_atomically
from flashdmd_cli.runs.teacher import TeacherRecord, sha256_remembered

SCHEMA_VERSION = 2
"""Version 2 added the teacher's path, revision and parts."""
MANIFEST = "manifest.json"
STATES = "state"
"""Subfolder of the states that a training is resumed from."""
NOT_LISTED = (STATES, "tensorboard")
"""Subfolders that are not listed in the manifest, because they may change after it is written."""

Kind = Literal["data", "suite", "distill", "align", "reward", "sample", "eval", "export", "demo", "asset"]
CHECKPOINTS: tuple[Kind, ...] = ("distill", "align")
"""Kinds of folders with a student."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class GridRecord(_Record):
    """The stock scheduler that reproduces the student's timesteps."""

    scheduler: str
    """Class name in diffusers."""
    config: dict[str, Any]


class Updates(_Record):
    """Number of optimizer steps of each role."""

    student: int = 0
    fake: int = 0
    discriminator: int = 0
    preference: int = 0


class Parent(_Record):
    """A result folder that this one was computed from."""

    path: str
    """Relative to this folder, or absolute."""
    sha256: str
    """Hash of the parent's manifest."""


class FileRecord(_Record):
    """One file of the folder; `write_manifest` fills in the size in bytes and the hash."""

    path: str
    size: int = 0
    sha256: str = ""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{path} lies outside the folder")
        return path


class Weights(_Record):
    """Form of the weights."""

    form: Literal["full", "lora"]
    dtype: str
    average: Literal["raw", "ema"] = "raw"
    """Last weights, or their exponential moving average."""


class CacheRecord(_Record):
    """Cached latents and text embeddings of the pictures."""

    what: list[str]
    """`latents`, `text`."""
    teacher: str
    """The teacher whose encoders were used, as given on the command line."""
    encoders: str
    """Content hash of its autoencoder, text encoders and tokenizers."""


class Collection(_Record):
    """Contents of a data folder, and statistics of its preparation."""

    seen: int
    """Number of rows in the source."""
    kept: int
    """Number of samples in the shards."""
    pictures: bool = True
    """False: prompts only."""
    members: dict[str, str] = {}
    """File type in a sample -> description."""
    rejected: dict[str, int] = {}
    """Reason or threshold -> number of rejected rows."""
    converted: dict[str, int] = {}
    """Conversion (`exif`, `cmyk`, `16 bit`, `alpha`, `animated`, `profile`, `enlarged`) -> number of kept pictures."""
    source: str
    """Format and path of the source, as given."""
    listing: str
    """SHA-256 over names, sizes and times of the source files, which detects a changed source."""
    content: str
    """SHA-256 over the digests of all kept pictures, which does not depend on the location of the source."""
    cache: CacheRecord | None = None


class FormatRecord(_Record):
    """One format of an export, as its loader in stock diffusers reads it."""

    dtype: str
    """Number format of the weights."""
    exact: bool
    """False for an approximation: a LoRA of a student whose weights were all trained."""
    largest: float
    """Largest difference of a pixel, on [0, 1], between its picture and the student's from the same noise."""
    mean: float
    """Mean difference of the pixels."""
    energy: float | None = None
    """For an approximation: the share of the difference to the teacher that it keeps (squared Frobenius norms)."""


class ExportRecord(_Record):
    """Options of an export, and how its formats compare with the student."""

    options: dict[str, Any]
    formats: dict[str, FormatRecord]


class Manifest(_Record):
    """The manifest of a result folder."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    family: str | None = None
    grid: GridRecord | None = None
    step: int = 0
    """Number of finished iterations."""
    images_seen: int = 0
    """Number of iterations times batch."""
    updates: Updates = Updates()
    teacher: TeacherRecord | None = None
    parents: list[Parent] = []
    files: list[FileRecord] = []
    weights: Weights | None = None
    recipe: dict[str, Any] = {}
    """The resolved recipe, or the options of a command without recipe."""
    data: str | None = None
    """Hash of the training data's manifest."""
    collection: Collection | None = None
    """For data folders."""
    export: ExportRecord | None = None
    """For exports."""
    versions: dict[str, str] = {}
    seed: int | None = None
    hardware: dict[str, str | int] = {}
    wall_seconds: float = 0.0
    license: str | None = None
    """Licence of the teacher's weights."""
    warnings: list[str] = []
    """Warnings of the tripwires during the run."""


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash the listed files (default: all of the folder) and write `folder/manifest.json` atomically.

    Files whose records have a hash already and are as large as recorded are not read again: shards to which caches are
    added may be terabytes. Fills in versions and hardware if they are empty. Returns the written manifest; raises
    `InputError` for a missing file and `FlashDMDError` on a full disk.
    """
    records = manifest.files or [FileRecord(path=path) for path in _files(folder, NOT_LISTED)]
    filled = manifest.model_copy(
        update={
            "files": [_hashed(folder, record) for record in records],
            "versions": manifest.versions or versions(),
            "hardware": manifest.hardware or hardware(),
        }
    )
    write_text_atomically(folder / MANIFEST, filled.model_dump_json(indent=2) + "\n")
    return filled


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; raises `InputError` if it is missing, damaged, or of a newer schema."""
    path = folder / MANIFEST
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        schema = int(values["schema_version"])
    except FileNotFoundError:
        if not folder.is_dir():
            raise InputError(f"{folder}: does not exist", hint="name a folder that a flashdmd command wrote") from None
        raise InputError(
            f"{folder}: has no manifest.json, so it is not a finished result",
            hint="if a flashdmd command was interrupted there, the same command again finishes it",
        ) from None
    except NotADirectoryError:
        raise InputError(f"{folder}: is a file", hint="name the folder that a flashdmd command wrote") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if schema > SCHEMA_VERSION:
        writer = values.get("versions", {}).get("flashdmd", "a newer version")
        raise InputError(
            f"{path}: schema {schema} is newer than {SCHEMA_VERSION}, the newest that flashdmd {__version__} reads",
            hint=f"it was written by flashdmd {writer}: pip install 'flashdmd>={writer}'",
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def verify(folder: Path) -> list[str]:
    """Differences between `folder` and its manifest, one line each; empty if there are none.

    Listed files must exist with their recorded size and hash; parents that still exist must have their recorded hash.
    """
    manifest = read_manifest(folder)
    problems = damaged_files(folder, manifest)
    for parent in manifest.parents:
        path = folder / parent.path / MANIFEST
        if path.is_file() and sha256_file(path) != parent.sha256:
            problems.append(f"parent {parent.path}: its manifest has changed since")
    return problems


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """The listed files that are missing or changed, one line each."""
    problems = []
    for record in manifest.files:
        path = folder / record.path
        if not path.is_file():
            problems.append(f"{record.path}: missing")
        elif path.stat().st_size != record.size:
            problems.append(f"{record.path}: {path.stat().st_size} bytes, recorded {record.size}")
        elif sha256_file(path) != record.sha256:
            problems.append(f"{record.path}: contents differ from the recorded hash")
    return problems


def parent_record(parent: Path, folder: Path) -> Parent:
    """The record of `parent` for the manifest of a result in `folder` that was computed from it."""
    read_manifest(parent)
    relative = os.path.relpath(parent.resolve(), folder.resolve())
    return Parent(path=Path(relative).as_posix(), sha256=sha256_file(parent / MANIFEST))


def newest(root: Path, *kinds: str) -> Path:
    """The folder under `root` with the latest manifest of one of `kinds`; raises `InputError` if there is none."""
    found = sorted(root.rglob(MANIFEST), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        try:
            if read_manifest(path.parent).kind in kinds:
                return path.parent
        except InputError:
            continue
    wanted = " or ".join(kinds)
    raise InputError(f"--from: no {wanted} result under {root}", hint="name a folder with --from, or make one first")


def hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files of a folder, except its manifest and hidden files."""
    total = hashlib.sha256()
    for path in _files(folder):
        total.update(f"{path}\0{sha256_remembered(folder / path)}\n".encode())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that affect numerical results."""
    found = {"flashdmd": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str | None = None, precision: str | None = None) -> dict[str, str | int]:
    """The machine, the device and precision of the networks if given, and the accelerator if torch is imported."""
    facts: dict[str, str | int] = {"machine": platform.machine(), "cores": os.cpu_count() or 0}
    torch = sys.modules.get("torch")
    if torch is not None and device is not None and precision is not None:
        facts |= {"device": device, "precision": precision, "threads": torch.get_num_threads()}
    if torch is not None and torch.cuda.is_available():
        facts |= {"accelerator": torch.cuda.get_device_name(), "num_accelerators": torch.cuda.device_count()}
    return facts


def _hashed(folder: Path, record: FileRecord) -> FileRecord:
    """The record with size and hash of its file; unchanged if it has a hash and the size is the same."""
    path = folder / record.path
    try:
        size = path.stat().st_size
        known = record.sha256 and record.size == size
        return record if known else FileRecord(path=record.path, size=size, sha256=sha256_file(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", hint="run the command again") from error


def _files(folder: Path, skipped: tuple[str, ...] = ()) -> list[str]:
    """Sorted relative paths of the files of a folder, without its manifest, hidden files and skipped folders."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(
        path.as_posix()
        for path in paths
        if path.as_posix() != MANIFEST
        and not any(part in skipped for part in path.parts[:-1])
        and not any(part.startswith(".") for part in path.parts)
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: not a manifest: {why}", hint="run the command that wrote it again")
