"""The one sink of all commands (human, JSON, quiet), and the one table from exception to exit code."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import typer
from safetensors import SafetensorError

from flashdmd_cli.cli.loading import TellsOfLoading
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.runs.errors import FlashDMDError, Interrupted, NumericalError, UsageError, WriteError
from flashdmd_cli.runs.files import plain, write_error
from flashdmd_cli.runs.lock import held, release
from flashdmd_cli.runs.reporter import duration
from flashdmd_cli.runs.signals import StopFlag, StopSignal

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (FileNotFoundError, 3),
    (IsADirectoryError, 3),
    (NotADirectoryError, 3),
    (DataError, 3),
    (Unfit, 3),
    (SafetensorError, 3),
    (UnpicklingError, 3),
    (FloatingPointError, 4),
    (KeyboardInterrupt, 130),
)
"""What an error means that is not of `runs/errors.py`, whose classes say it themselves. All else is 1."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says when --out cannot take what is written."""

PLAIN_LINE_SECONDS = 5.0
"""How often progress is told where no bar can be drawn."""


def exit_code(error: BaseException) -> int:
    """The exit code for an error: its own, else by the table, else 1."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return WriteError.exit_code
    if isinstance(error, FlashDMDError):
        return error.exit_code
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def error_line(error: BaseException) -> str:
    """One line for a person: what to change, then what to do next."""
    if hasattr(error, "hint"):
        text, hint = " ".join(str(error.args[0] if error.args else error).split()), " ".join(error.hint.split())
        return f"{text} ({hint})" if hint else text
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once; what was saved before is intact, nothing after it is kept"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return error_line(write_error(Path(error.filename) if error.filename else held(), error.errno or 0, str(error)))
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or type(error).__name__}: {error.strerror}"
    lines = str(error).split("\n")
    first = " ".join(lines[0].split())
    if exit_code(error) != 1:
        return first or type(error).__name__
    return f"{type(error).__name__}: {first} (this may be a fault of flashdmd; --debug shows where)"


class Output:
    """Results to stdout, everything else to stderr."""

    def __init__(self, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        self.stop = StopFlag(self.say)

    @property
    def draws_bars(self) -> bool:
        """Whether a bar may move on stderr: a person watches a terminal."""
        return sys.stderr.isatty() and not (self.quiet or self.as_json)

    def say(self, text: str) -> None:
        """Tell a person what is going on; silent under --quiet, and where nobody can be told: work goes on."""
        if not self.quiet:
            with suppress(OSError):
                print(text, file=sys.stderr, flush=True)

    def result(self, document: Any, text: str | Sequence[str], names: str | Sequence[str] = ()) -> None:
        """Print the result once, in the form that was asked for.

        `document` is the JSON form, `text` the human form (lines), `names` the ids or paths for --quiet.
        """
        chosen = names if self.quiet else text
        if self.as_json:
            chosen = json.dumps(plain(document), indent=2, ensure_ascii=False)
        with to_stdout():
            for line in [chosen] if isinstance(chosen, str) else chosen:
                print(line, flush=True)


@contextmanager
def to_stdout() -> Iterator[None]:
    """Tell a full disk behind stdout in one line."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        hush_stdout()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise WriteError(
            f"stdout: cannot be written: {reason}", hint="free some space, or send it elsewhere"
        ) from error


def hush_stdout() -> None:
    """What is left to flush to stdout goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def command(as_json: bool = False, quiet: bool = False, debug: bool = False, resumes: bool = False) -> Iterator[Output]:
    """The body of a command: gives it its output, turns its errors into one line and the right exit code.

    A command that `resumes` keeps what it has finished when it is interrupted, and goes on from there.
    """
    output = Output(as_json, quiet, debug)
    loading = TellsOfLoading(output.say)
    with output.stop:
        try:
            if as_json and quiet:
                raise UsageError("--quiet: choose one of --json and --quiet")
            loading.enter()
            yield output
            with to_stdout():
                sys.stdout.flush()
        except typer.Exit:
            raise
        except BrokenPipeError:
            # The reader (`| head`) has gone.
            hush_stdout()
            raise typer.Exit(1) from None
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            meant = interruption(error, output.stop, resumes)
            with suppress(OSError):
                print(error_line(meant), file=sys.stderr, flush=True)
            raise typer.Exit(exit_code(meant)) from None
        finally:
            loading.leave()
            release()


def interruption(error: BaseException, stop: StopFlag, resumes: bool) -> BaseException:
    """What `error` means: after a signal it is the signal, whatever a library in whose middle it came made of it.

    What was said while ending stands: that the state is saved, or could not be. Of what is kept only a command that
    `resumes` has something to say.
    """
    if stop.requested is None or isinstance(error, (Interrupted, WriteError, NumericalError)):
        return error
    if not resumes:
        told = Interrupted("interrupted")
    elif isinstance(error, StopSignal) or not isinstance(error, KeyboardInterrupt):
        told = Interrupted("interrupted; what was finished before is kept", hint="run the same command again")
    else:
        told = Interrupted(error_line(error))
    told.exit_code = 128 + stop.requested
    return told


@dataclass
class Clock:
    """The time of one phase, of which units are done."""

    unit: str = "it"
    first: tuple[int, float] | None = None
    """How many were done when it started, and when that was."""
    aside: float = 0.0
    """Seconds since then that went into other work."""
    told_at: float = -math.inf
    seconds_each: bool | None = None
    """Whether the speed is told as seconds per unit; the first that is measured decides for the whole phase."""

    def told(self, done: int, total: int, now: float) -> str:
        """`30/400  2.5 it/s  ETA 2:43`. The speed is that of the work itself, the ETA counts what comes between."""
        if self.first is None or done < self.first[0]:
            self.first, self.aside = (done, now), 0.0
        num, seconds = done - self.first[0], max(now - self.first[1], 1e-9)
        text = f"{done}/{total}"
        if num > 0:
            rate = num / max(seconds - self.aside, 1e-9)
            if self.seconds_each is None:
                self.seconds_each = rate < 1
            text += f"  {short(1 / rate)} s/{self.unit}" if self.seconds_each else f"  {short(rate)} {self.unit}/s"
            text += f"  ETA {duration((total - done) * seconds / num)}"
        return text


def short(value: float) -> str:
    """Three digits, without an exponent where there are more in front of the point."""
    return f"{value:.3g}" if value < 999 else f"{value:.0f}"


class Progress:
    """Watches long work: a rich bar on a terminal, else a plain line every few seconds; rate and ETA in both."""

    def __init__(self, output: Output, every: float = PLAIN_LINE_SECONDS) -> None:
        self.output, self.every, self.clock = output, every, Clock()
        self.stop, self.say = output.stop, output.say
        self.bar: Any = None
        self.task: Any = None
        if sys.stderr.isatty() and not output.quiet:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            text = (TextColumn(f"{{task.{column}}}") for column in ("description", "fields[told]"))
            self.bar = Bar(next(text), BarColumn(), next(text), console=Console(stderr=True), transient=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            with suppress(OSError):  # the terminal may be gone, which must not end the work
                self.bar.stop()

    @property
    def draws_bars(self) -> bool:
        """Whether a library may draw a bar of its own."""
        return self.output.draws_bars

    def phase(self, text: str, unit: str = "it") -> None:
        """A new part of the work begins, counted in `unit`s; ends here if a stop was asked for."""
        self.output.stop.check()
        self._take_down()
        self.clock = Clock(unit)
        self.output.say(text)

    @contextmanager
    def aside(self, text: str, unit: str = "it") -> Iterator[None]:
        """Other work in the middle of a phase, with a counter of its own; the phase's speed does not count its time."""
        phase, began = self.clock, time.monotonic()
        self.phase(text, unit)
        try:
            yield
        finally:
            self._take_down()
            phase.aside += time.monotonic() - began
            self.clock = phase

    def _take_down(self) -> None:
        """The bar goes, for others to write where it was."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()
                if self.task is not None:
                    self.bar.remove_task(self.task)
        self.task = None

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`done` of `total` are finished (0 starts the clock); the metrics worth a look go along."""
        self.output.stop.check()
        now = time.monotonic()
        told = self.clock.told(done, total, now)
        shown = list((metrics or {}).items())[:4]
        told += "".join(f"  {name} {value:.4g}" for name, value in shown)
        if self.bar is not None:
            with suppress(OSError):
                if self.task is None:
                    self.task = self.bar.add_task("", total=total, told=told)
                    self.bar.start()
                self.bar.update(self.task, completed=done, total=total, told=told)
        elif done and now - self.clock.told_at >= self.every or done == total:
            self.clock.told_at = now
            self.output.say(f"  {told}")
