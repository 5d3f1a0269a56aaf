"""Progress reports of workflows: the command line shows progress bars, a notebook may print, the default is silent."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from flashdmd_cli.runs.signals import StopFlag


class Reporter(Protocol):
    """Receives the progress of a workflow. Every call may raise `StopSignal` if a stop was requested."""

    stop: StopFlag
    """Checked between steps; `StopFlag.request` ends a workflow from another thread."""

    @property
    def draws_bars(self) -> bool:
        """Whether libraries (downloads) may show their own progress bars."""

    def say(self, text: str) -> None:
        """Show a message of one line."""

    def phase(self, text: str, unit: str = "it") -> None:
        """Start a new phase of the work, in which `progress` counts units named `unit`."""

    def aside(self, text: str, unit: str = "it") -> AbstractContextManager[None]:
        """Other work in the middle of a phase, as a phase of its own inside the `with`; then the phase goes on."""

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report `done` of `total` units of this phase (0 starts the clock), with metrics to display."""


class SilentReporter:
    """Shows nothing; the default of every workflow."""

    draws_bars = False

    def __init__(self, stop: StopFlag | None = None) -> None:
        self.stop = stop or StopFlag()

    def say(self, text: str) -> None:
        """Does nothing."""

    def phase(self, text: str, unit: str = "it") -> None:
        self.stop.check()

    @contextmanager
    def aside(self, text: str, unit: str = "it") -> Iterator[None]:
        self.phase(text, unit)
        yield

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.stop.check()


def wrapped(text: str, width: int = 80) -> str:
    """A long message in lines of `width` characters, all but the first indented; paths and URLs are not broken."""
    return "\n".join(textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def duration(seconds: float) -> str:
    """Readable duration: `75` -> `1:15`, `3700` -> `1:01:40`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(num: int, noun: str) -> str:
    """`1 picture`, `5 pictures`."""
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"
