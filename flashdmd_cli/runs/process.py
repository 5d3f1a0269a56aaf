"""What a process is given: signals before any command runs, and streams that can be written to."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType


def begin_process() -> None:
    """Call first of all: makes a signal end the process in one line, and streams safe whatever the shell gave.

    A closed stdin, stdout or stderr becomes the null device, or the next file that is opened would take its number
    and receive what libraries print. What a narrow encoding cannot say is printed escaped.
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
    """Nothing is begun yet. An exception instead might be swallowed by an import that is going on."""
    try:
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
