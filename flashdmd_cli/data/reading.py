"""Safe reading of untrusted sources: size limits, no paths outside the source, validation of captions and scalars."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.data.items import MAX_CAPTION_BYTES, MAX_FILE_BYTES, Rejected

MAX_LINE_BYTES = 16 * 2**20
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions")
"""Names of caption columns in order of priority, case-insensitive."""
_LFS = b"version https://git-lfs"
_HUB_KINDS = ("datasets--", "models--", "spaces--")


def printable(name: str) -> str:
    """`name` with all characters that are not valid UTF-8 replaced."""
    return name.encode("utf-8", "replace").decode()


def inside(root: Path, name: str) -> Path:
    """The path of `name` under `root` (a resolved folder); `Rejected` if the name or a link leads out of it."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise Rejected("unsafe_path", name)
    path = root / name
    try:
        real = path.resolve()
    except ValueError:  # a lone surrogate, which no file's name can contain
        raise Rejected("missing_file", printable(name)) from None
    except (OSError, RuntimeError) as error:
        raise Rejected("link", str(error)) from None
    if not real.is_relative_to(_bounds(root)):
        raise Rejected("link", name)
    return path


@lru_cache(maxsize=16)
def _bounds(root: Path) -> Path:
    """The folder that links under `root` may point into: `root` itself, or in the hub's cache the repository's folder,
    where `datasets--owner--name/snapshots/REVISION` contains links to `datasets--owner--name/blobs`.
    """
    for folder in (root, *root.parents):
        repository = folder.parent.parent
        if folder.parent.name == "snapshots" and repository.name.startswith(_HUB_KINDS):
            return repository
    return root


def named(root: Path, name: str) -> tuple[Path, str]:
    """The path of a file named in a table, and its name with "/" between folders; tables from Windows have "\\"."""
    path = inside(root, name)
    if "\\" in name and not path.exists():
        name = name.replace("\\", "/")
        path = inside(root, name)
    return path, name


def read_file(path: Path, limit: int = MAX_FILE_BYTES, too_big: str = "file_too_big") -> bytes:
    """All bytes of a regular file; `Rejected` if it is missing, empty, larger than `limit` or unreadable."""
    try:
        if not path.is_file():
            raise Rejected("missing_file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Rejected("unreadable", str(error.strerror or error)) from None
    return _bounded(data, limit, too_big)


def read_part(path: Path, place: Sequence[int], limit: int = MAX_FILE_BYTES, too_big: str = "file_too_big") -> bytes:
    """A member of a tar with `place` (offset, size) in bytes; `Rejected` as by `read_file`, or for a truncated tar."""
    offset, size = place
    if size > limit:
        raise Rejected(too_big)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise Rejected("unreadable", str(error.strerror or error)) from None
    if len(data) < size:
        raise Rejected("tar_truncated")
    return _bounded(data, limit, too_big)


def _bounded(data: bytes, limit: int, too_big: str) -> bytes:
    if not data:
        raise Rejected("empty_file")
    if len(data) > limit:
        raise Rejected(too_big)
    if data.startswith(_LFS):
        raise Rejected("lfs_pointer")
    return data


def is_lfs_pointer(path: Path) -> bool:
    """Whether `path` is a Git LFS pointer, from a repository that was cloned without its large files."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def decode_caption(raw: bytes) -> str:
    """The caption in a file's bytes (UTF-8, with or without byte-order mark); `Rejected` if it is invalid."""
    if len(raw) > MAX_CAPTION_BYTES:
        raise Rejected("caption_too_big", f"{len(raw)} bytes")
    try:
        return check_caption(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Rejected("caption_not_utf8", str(error)) from None


def check_caption(text: object) -> str:
    """The caption without surrounding white space; `Rejected` if it is not a valid caption."""
    if not isinstance(text, str):
        raise Rejected("no_caption")
    if len(text) > MAX_CAPTION_BYTES:
        raise Rejected("caption_too_big", f"{len(text)} characters")
    if "\0" in text:
        raise Rejected("caption_nul")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # lone surrogate: the bytes were not UTF-8
        raise Rejected("caption_not_utf8", error.reason) from None
    if size > MAX_CAPTION_BYTES:
        raise Rejected("caption_too_big", f"{size} bytes")
    if not (stripped := text.strip()):
        raise Rejected("no_caption")
    return stripped


def read_caption(path: Path) -> str:
    """The caption in a caption file beside a picture."""
    try:
        return decode_caption(read_file(path, MAX_CAPTION_BYTES, "caption_too_big"))
    except Rejected as rejected:
        if rejected.reason in ("empty_file", "missing_file"):
            raise Rejected("no_caption") from None
        raise


@dataclass(frozen=True)
class Captions:
    """Selection of the caption in a row of a table."""

    column: str | None = None
    """Column or JSON key; None: the first of `CAPTION_COLUMNS`."""
    seed: int | None = None
    """Seed of the random selection among several captions of a row; None: the first one."""

    def of(self, columns: Mapping[str, Any], row: str) -> str:
        """The caption of the row named `row`; `Rejected` if it has none or an invalid one."""
        name = find_column(columns, self.column, {key for key, value in columns.items() if value is None})
        texts = _texts(columns[name]) if name is not None else []
        return check_caption(texts[self.place(len(texts), row)] if texts else None)

    def place(self, count: int, row: str) -> int:
        """Index of the selected caption out of `count`; depends only on the seed and the row's name."""
        if self.seed is None:
            return 0
        digest = hashlib.sha256(f"{self.seed}/{row}".encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8], "big") % count


def find_column(names: Iterable[str], wanted: str | None, without: Iterable[str] = ()) -> str | None:
    """The caption column among `names`: `wanted`, or the first of `CAPTION_COLUMNS`; None if there is none. Names in
    `without` are ignored."""
    candidates = [name for name in names if name not in without]
    if wanted is not None:
        return wanted if wanted in candidates else None
    by_case = {name.lower(): name for name in reversed(candidates)}
    return next((by_case[name] for name in CAPTION_COLUMNS if name in by_case), None)


def _texts(value: Any) -> list[Any]:
    """The captions in a cell: one, or several in a list, which may be written as JSON, as in CSV files."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            several = parse_json(value)
        except ValueError:
            return [value]
        if isinstance(several, list) and several and all(isinstance(each, str) for each in several):
            value = several
    if isinstance(value, (list, tuple)):
        return [each for each in value if isinstance(each, str) and each.strip()]
    return [value]


def scalars(columns: Mapping[Any, Any]) -> dict[str, Any]:
    """The columns to store in a sample's JSON: numbers, booleans and short texts with printable names."""
    kept: dict[str, Any] = {}
    for name, value in columns.items():
        if not (isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if value is None or isinstance(value, (bool, int, float)):
            kept[name] = value
        elif isinstance(value, str) and len(value) <= 1000 and "\0" not in value:
            kept[name] = printable(value)
    return kept


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object; `Rejected` for anything else."""
    try:
        values = parse_json(raw)
    except ValueError as error:
        raise Rejected("bad_row", str(error)) from None
    if not isinstance(values, dict):
        raise Rejected("bad_row", "not a JSON object")
    return values


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines of a file, from 1; None for a line that is too long."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) <= MAX_LINE_BYTES:
                yield number, line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield number, None
