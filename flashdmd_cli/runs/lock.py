"""Locks on result folders, so that only one process writes to each; they are released when the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import writing

LOCK = ".lock"
_LOCKED: dict[Path, IO[str]] = {}
"""The folders that this process has locked, in this order, with their open lock files."""


def hold(folder: Path, flag: str = "--out", shared: bool = False) -> None:
    """Lock `folder` against writing by other processes until `release`; `shared` admits others with a shared lock.

    If this process has locked the folder already, the lock changes to the new kind. Raises `UsageError` if another
    process has locked it, `WriteError` if no file can be created there. On a file system without locks this does not
    keep other processes out.
    """
    path = folder / LOCK
    file = _LOCKED.get(folder.resolve())
    with writing(folder, flag):
        if file is None or not _is(file, path):
            file = open(path, "a", encoding="utf-8", opener=_no_link)
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        if file is not _LOCKED.get(folder.resolve()):
            file.close()
        other = f"another process{_name(path)}"
        raise UsageError(
            f"{flag} {folder}: {other} is writing to it", hint="wait for it, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    _LOCKED[folder.resolve()] = file
    _write_owner(file)


def is_alone(folder: Path) -> bool:
    """Whether no other process shares the lock on `folder`; if so, the lock of this process becomes exclusive."""
    try:
        hold(folder)
    except UsageError:
        return False
    return True


def last_locked() -> Path | None:
    """The folder that this process locked last, which is where it writes; None without locks."""
    return next(reversed(_LOCKED), None)


def release() -> None:
    """Release the locks on all folders, as the end of the process does."""
    while _LOCKED:
        _LOCKED.popitem()[1].close()


@contextmanager
def releasing() -> Iterator[None]:
    """Context manager or decorator that releases, at its end, the locks that were taken inside.

    An OSError without a file name, as a full disk may raise, gets the name of the folder locked last.
    """
    before = set(_LOCKED)
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None and (folder := last_locked()) is not None:
            error.filename = str(folder)
        raise
    finally:
        for folder in _LOCKED.keys() - before:
            _LOCKED.pop(folder).close()


def _no_link(path: str, flags: int) -> int:
    """Open a file for writing; OSError if the path is a link or a pipe, which somebody else may have put there."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _write_owner(file: IO[str]) -> None:
    """Write this process's id and host name to a lock file; with a shared lock, the latest process overwrites it."""
    with suppress(OSError):  # a full disk is reported when the command writes its results
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{os.getpid()} {socket.gethostname()}\n".encode())


def _name(path: Path) -> str:
    """` (pid 4711)` of the process in a lock file, with the host name if it is another machine.

    Empty if the process is unknown, has ended (with a shared lock, another one may have the lock) or is this one.
    """
    with suppress(OSError, ValueError, OverflowError):
        pid, host = path.read_text(encoding="utf-8").split()
        if host != socket.gethostname():
            return f" (pid {int(pid)} on {host})"
        with suppress(PermissionError):  # a process of another user
            os.kill(int(pid), 0)
        return f" (pid {int(pid)})" if int(pid) != os.getpid() else ""
    return ""


def _is(file: IO[str], path: Path) -> bool:
    """Whether an open lock file is still the one at `path`, since the folder may have been deleted and recreated."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
