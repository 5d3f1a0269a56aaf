"""Reading what strangers wrote: bounded files inside the source, captions, scalars, lines. Nothing here writes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from flashdmd_cli.data.items import MAX_CAPTION_BYTES, MAX_FILE_BYTES, Rejected

MAX_LINE_BYTES = 16 * 2**20
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions")
"""Names under which tables keep captions, in the order in which they are looked for; their case does not matter."""
_LFS = b"version https://git-lfs"
_HUB_KINDS = ("datasets--", "models--", "spaces--")


def printable(name: str) -> str:
    """A name that JSON and UTF-8 can hold, whatever bytes the file system has."""
    return name.encode("utf-8", "replace").decode()


def inside(root: Path, name: str) -> Path:
    """The file `name` under `root` (a resolved folder). `Rejected` when the name, or a link, leads out of it."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise Rejected("unsafe_path", name)
    path = root / name
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise Rejected("link", str(error)) from None
    if not real.is_relative_to(_bounds(root)):
        raise Rejected("link", name)
    return path


@lru_cache(maxsize=16)
def _bounds(root: Path) -> Path:
    """The folder that links below `root` may not leave: `root` itself, or the repository's folder in the hub's cache.

    There, `datasets--owner--name/snapshots/REVISION` is made of links to `datasets--owner--name/blobs`.
    """
    for folder in (root, *root.parents):
        repository = folder.parent.parent
        if folder.parent.name == "snapshots" and repository.name.startswith(_HUB_KINDS):
            return repository
    return root


def named(root: Path, name: str) -> tuple[Path, str]:
    """The file that a table names, and the name with "/" between folders: a table from Windows has "\\" there."""
    path = inside(root, name)
    if "\\" in name and not path.exists():
        name = name.replace("\\", "/")
        path = inside(root, name)
    return path, name


def read_file(path: Path, limit: int = MAX_FILE_BYTES, too_big: str = "file_too_big") -> bytes:
    """All bytes of a regular file; `Rejected` when it is missing, empty, larger than `limit` or cannot be read."""
    try:
        if not path.is_file():
            raise Rejected("missing_file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Rejected("unreadable", str(error.strerror or error)) from None
    return _bounded(data, limit, too_big)


def read_part(path: Path, place: Sequence[int], limit: int = MAX_FILE_BYTES, too_big: str = "file_too_big") -> bytes:
    """A member of a tar, its `place` being offset and size; `Rejected` as `read_file`, or when the file ends before."""
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
    """Whether a repository was cloned without its large files, and `path` holds a note in place of one."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def decode_caption(raw: bytes) -> str:
    """A caption file's text (UTF-8, a byte-order mark is allowed); `Rejected` when it cannot be one."""
    if len(raw) > MAX_CAPTION_BYTES:
        raise Rejected("caption_too_big", f"{len(raw)} bytes")
    try:
        return check_caption(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Rejected("caption_not_utf8", str(error)) from None


def check_caption(text: object) -> str:
    """A caption without the white space around it; otherwise it is kept as it is. `Rejected` when it cannot be one."""
    if not isinstance(text, str):
        raise Rejected("no_caption")
    if len(text) > MAX_CAPTION_BYTES:
        raise Rejected("caption_too_big", f"{len(text)} characters")
    if "\0" in text:
        raise Rejected("caption_nul")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # half of a surrogate pair: the bytes were no UTF-8
        raise Rejected("caption_not_utf8", error.reason) from None
    if size > MAX_CAPTION_BYTES:
        raise Rejected("caption_too_big", f"{size} bytes")
    if not (stripped := text.strip()):
        raise Rejected("no_caption")
    return stripped


def read_caption(path: Path) -> str:
    """The caption in a `.txt` beside a picture."""
    try:
        return decode_caption(read_file(path, MAX_CAPTION_BYTES, "caption_too_big"))
    except Rejected as rejected:
        if rejected.reason in ("empty_file", "missing_file"):
            raise Rejected("no_caption") from None
        raise


@dataclass(frozen=True)
class Captions:
    """Which caption of a table's row is taken."""

    column: str | None = None
    """Name of its column or JSON key; None for the first of the usual names."""
    seed: int | None = None
    """Of several captions take the one that this seed and the row's name draw; None takes the first."""

    def of(self, columns: Mapping[str, Any], row: str) -> str:
        """The caption of the row called `row`; `Rejected` when there is none, or when it cannot be one."""
        name = find_column(columns, self.column, {key for key, value in columns.items() if value is None})
        texts = _texts(columns[name]) if name is not None else []
        return check_caption(texts[self.place(len(texts), row)] if texts else None)

    def place(self, count: int, row: str) -> int:
        """Which of `count` captions is taken: a function of the seed and the row's name alone."""
        if self.seed is None:
            return 0
        digest = hashlib.sha256(f"{self.seed}/{row}".encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8], "big") % count


def find_column(names: Iterable[str], wanted: str | None, without: Iterable[str] = ()) -> str | None:
    """The caption column among `names`: the one that was asked for, or the first of the usual ones; None if it is not
    there. Those in `without` are passed over."""
    there = [name for name in names if name not in without]
    if wanted is not None:
        return wanted if wanted in there else None
    by_case = {name.lower(): name for name in reversed(there)}
    return next((by_case[name] for name in CAPTION_COLUMNS if name in by_case), None)


def _texts(value: Any) -> list[Any]:
    """One caption, or several: a list, also one that is written as JSON since a CSV cell holds nothing but text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            several = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        if isinstance(several, list) and several and all(isinstance(each, str) for each in several):
            value = several
    if isinstance(value, (list, tuple)):
        return [each for each in value if isinstance(each, str) and each.strip()]
    return [value]


def scalars(columns: Mapping[Any, Any]) -> dict[str, Any]:
    """The columns that a sample's JSON keeps: numbers, truth values and short texts, under printable names."""
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
    """A JSON object; `Rejected` for anything else."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_row", str(error)) from None
    if not isinstance(values, dict):
        raise Rejected("bad_row", "not a JSON object")
    return values


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines of a file, from 1; None for one that is too long to be held."""
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
