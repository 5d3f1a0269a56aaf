"""Set-up of a process before any command runs: signal handlers and standard streams."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType

from flashdmd_cli.runs.launcher import is_other_rank


def begin_process() -> None:
    """Call this first: a signal then ends the process with a one-line message, and standard streams are usable.

    A closed stdin, stdout or stderr is replaced by the null device; otherwise the next opened file would get its number
    and receive the output of libraries. Characters that the encoding does not have are printed escaped.
    """
    for which in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(which) != signal.SIG_IGN:
            signal.signal(which, _leave)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _null(number))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave(number: int, frame: FrameType | None) -> None:
    """Exit at once: nothing has been started, and a running import might catch an exception."""
    try:
        if not is_other_rank():
            os.write(2, b"interrupted before anything was begun\n")
    finally:
        os._exit(128 + number)


def _null(number: int) -> io.TextIOBase:
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.set_inheritable(number, True)
    return open(os.devnull, "w" if number else "r", encoding="utf-8")
