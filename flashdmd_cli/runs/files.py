"""Atomic writing of files, one-line errors for failed writes, and hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashdmd_cli.runs.errors import WriteError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
    errno.EFBIG: (
        "the file is larger than the system allows",
        "raise the limit (`ulimit -f`) or choose another {flag}",
    ),
    errno.EROFS: ("the file system is read-only", "choose another {flag}"),
    errno.EACCES: ("permission denied", "choose another {flag}, or change the rights of this one"),
    errno.EPERM: ("operation not permitted", "choose another {flag}, or change the rights of this one"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "choose another {flag}"),
    errno.ELOOP: ("a link stands where a file is needed", "delete the link, or choose another {flag}"),
    errno.ENXIO: ("a pipe stands where a file is needed", "delete the pipe, or choose another {flag}"),
    errno.EEXIST: ("a file stands where a folder is needed", "choose another {flag}"),
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters of C0 and C1 except line feed and tab."""


@contextlib.contextmanager
def writing(path: Path, flag: str = "--out") -> Iterator[None]:
    """Convert an OSError of a write under `path`, the value of the option `flag`, into a `WriteError`.

    It names the file of the error if that is below the folder `path`, else `path`.
    """
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else path
        place = named if named.is_relative_to(path) else path
        raise write_error(place, error.errno or 0, str(error), flag) from error


def reason(code: int) -> str:
    """Description of the errno `code`."""
    return _REASONS[code][0] if code in _REASONS else os.strerror(code)


def size(num_bytes: float) -> str:
    """Readable file size, for example `318.0 kB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def expanded(name: str | os.PathLike[str]) -> Path:
    """A path with `~` replaced by the home directory, if one is known."""
    return Path(os.path.expanduser(name))


def write_error(path: Path | None, code: int, text: str, flag: str = "--out") -> WriteError:
    """The error for a failed write to `path` (None if unknown) with errno `code`."""
    why, hint = _REASONS.get(code, (text, "choose another {flag}"))
    what = f"cannot write {path}" if path is not None else "cannot be written"
    return WriteError(f"{flag}: {what}: {why}", hint=hint.format(flag=flag))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_readable_as_others(folder: Path) -> None:
    """Give weights under `folder` the default permissions of new files; safetensors lets only their owner read them."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)


@contextlib.contextmanager
def saving_weights(folder: Path) -> Iterator[None]:
    """Context for saving weights: errors of any library become a `WriteError`, and permissions are set."""
    from safetensors import SafetensorError

    with writing(folder):
        try:
            yield
            as_readable_as_others(folder)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise write_error(_newest(folder), int(number[1]) if number else 0, str(error)) from error
        except OSError as error:
            error.filename = error.filename or str(_newest(folder))
            raise


def _newest(folder: Path) -> Path:
    """The file below `folder` that was written last: the one that a library could not finish. Else the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=folder)


def visible(text: str) -> str:
    """`text` with control characters other than line ends and tabs as escapes (ESC as `\\u001b`), which JSON allows.

    Printed as they are, those in a file of somebody else could move the cursor or change the terminal's settings.
    """
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plain(value: Any) -> Any:
    """JSON-serialisable copy: paths as text, non-finite numbers as null, pydantic models as dictionaries."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with a temporary path to write to, beside `path`: renamed to `path` at the end, deleted after an error.

    An interruption leaves either the old or the new file. Raises `WriteError`, which names `path`, for an OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`; an interruption leaves either the old or the new file, never a partial one.

    Raises `WriteError` if the disk is full or read-only.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    with writing(path):
        sync(path.parent)
