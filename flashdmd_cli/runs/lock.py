"""One process at a time writes to a folder: the system takes the lock back when the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import writing

LOCK = ".lock"
_HELD: dict[Path, IO[str]] = {}
"""The folders that this process holds, each with its open lock file."""


def hold(folder: Path, flag: str = "--out", shared: bool = False) -> None:
    """Keep other processes from writing to `folder` until `release`; `shared` lets those in that share it as well.

    A folder that this process holds already is held in the new way. Raises `UsageError` when another process holds it,
    `WriteError` when no file can be made there. On a file system without locks nobody is kept out.
    """
    path = folder / LOCK
    file = _HELD.get(folder.resolve())
    with writing(folder, flag):
        if file is None or not _is(file, path):
            file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        if file is not _HELD.get(folder.resolve()):
            file.close()
        other = f"another process{_name(path)}"
        raise UsageError(
            f"{flag} {folder}: {other} is writing to it", hint="wait for it, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    _HELD[folder.resolve()] = file
    _sign(file)


def is_alone(folder: Path) -> bool:
    """Whether no other process shares `folder`, which this one holds; from now on none can."""
    try:
        hold(folder)
    except UsageError:
        return False
    return True


def held() -> Path | None:
    """The folder that this process took last: where it writes; None when there is none."""
    return next(reversed(_HELD), None)


def release() -> None:
    """Let go of every folder; the end of the process does the same."""
    while _HELD:
        _HELD.popitem()[1].close()


def _sign(file: IO[str]) -> None:
    """Note in a lock file who holds it; of several that share it, who came last."""
    with suppress(OSError):  # a full disk is told by what the command writes
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{os.getpid()} {socket.gethostname()}\n".encode())


def _name(path: Path) -> str:
    """` (pid 4711)` of who holds a lock file, where it is known, with the machine where that is another one.

    Of several that share the lock the last to come is noted; it is not named where it has ended, or is this process.
    """
    with suppress(OSError, ValueError, OverflowError):
        pid, host = path.read_text(encoding="utf-8").split()
        if host != socket.gethostname():
            return f" (pid {int(pid)} on {host})"
        with suppress(PermissionError):  # another user's
            os.kill(int(pid), 0)
        return f" (pid {int(pid)})" if int(pid) != os.getpid() else ""
    return ""


def _is(file: IO[str], path: Path) -> bool:
    """Whether an open lock file is still the one in its folder, which may have been deleted and made anew."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
