"""Output of all commands (text, JSON or quiet), and the exit code and error line for each exception."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import typer
from safetensors import SafetensorError

from flashdmd_cli.cli.clock import Clock
from flashdmd_cli.cli.loading import ImportNotice
from flashdmd_cli.cli.ranks import joined
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.runs.errors import FlashDMDError, Interrupted, LostContact, NumericalError, UsageError, WriteError
from flashdmd_cli.runs.files import plain, visible, write_error
from flashdmd_cli.runs.launcher import is_other_rank
from flashdmd_cli.runs.lock import last_locked, release
from flashdmd_cli.runs.signals import StopFlag, StopSignal

if TYPE_CHECKING:
    from flashdmd_cli.runs.world import World

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
"""Exit codes of exceptions from elsewhere; those of `runs/errors.py` have their own. Any other exception gives 1."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers of the operating system for a full or read-only disk."""

PLAIN_LINE_SECONDS = 5.0
"""Interval of progress lines where no bar can be drawn."""


def exit_code(error: BaseException) -> int:
    """The exit code for an error: its own, else the one in `EXIT_CODES`, else 1."""
    if isinstance(error, FlashDMDError):
        return error.exit_code
    if isinstance(error, OSError) and (error.errno in UNWRITABLE or error.filename is not None):
        return WriteError.exit_code
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def error_line(error: BaseException) -> str:
    """One line for the user: what is wrong, then in brackets what to do next."""
    if hasattr(error, "hint"):
        text, hint = " ".join(str(error.args[0] if error.args else error).split()), " ".join(error.hint.split())
        return f"{text} ({hint})" if hint else text
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once; what was saved before is intact, later work is lost"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        place = Path(error.filename) if error.filename else last_locked()
        return error_line(write_error(place, error.errno or 0, str(error)))
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or type(error).__name__}: {error.strerror}"
    lines = str(error).split("\n")
    first = " ".join(lines[0].split())
    if exit_code(error) != 1:
        return first or type(error).__name__
    return f"{type(error).__name__}: {first} (this may be a fault of flashdmd; --debug shows where)"


class Output:
    """Results to stdout, everything else to stderr."""

    def __init__(self, as_json: bool = False, quiet: bool = False, debug: bool = False, is_main: bool = True) -> None:
        """`is_main` is false in all but one of the processes of a training, which print nothing but errors."""
        self.as_json, self.quiet, self.debug, self.is_main = as_json, quiet, debug, is_main
        self.stop = StopFlag(self.say)
        self.world: World | None = None
        """The processes that share the work of this command; None: this one alone."""

    @property
    def draws_bars(self) -> bool:
        """Whether progress bars may be drawn: stderr is a terminal, and neither --quiet nor --json is given."""
        return sys.stderr.isatty() and self.is_main and not (self.quiet or self.as_json)

    def say(self, text: str) -> None:
        """Print a message to stderr, except under --quiet; a closed stderr is ignored, so that the work continues."""
        if self.is_main and not self.quiet:
            with suppress(OSError):
                print(visible(text), file=sys.stderr, flush=True)

    def result(self, document: Any, text: str | Sequence[str], names: str | Sequence[str] = ()) -> None:
        """Print the result once, in the requested form.

        `document` is printed for --json, `names` (ids or paths) for --quiet, and `text` (lines) otherwise.
        """
        if not self.is_main:
            return
        chosen = names if self.quiet else text
        if self.as_json:
            chosen = json.dumps(plain(document), indent=2, ensure_ascii=False)
        with to_stdout():
            for line in [chosen] if isinstance(chosen, str) else chosen:
                print(visible(line), flush=True)


@contextmanager
def to_stdout() -> Iterator[None]:
    """Turns a failed write to stdout, for example to a full disk, into a one-line `WriteError`."""
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
    """Redirect stdout to /dev/null, so that flushing the rest at exit raises no second error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def command(
    as_json: bool = False, quiet: bool = False, debug: bool = False, resumes: bool = False, trains: bool = False
) -> Iterator[Output]:
    """Context for the body of a command: yields its `Output`, turns exceptions into one line and an exit code.

    `resumes`: whether an interrupted command keeps finished work and continues from it when it is repeated.
    `trains`: whether several processes may share its work; only one of them then prints.
    """
    output = Output(as_json, quiet, debug, is_main=not (trains and is_other_rank()))
    loading = ImportNotice(output.say)
    with output.stop:
        try:
            loading.enter()
            output.world = joined() if trains else None
            if as_json and quiet:
                raise UsageError("--quiet: choose one of --json and --quiet")
            yield output
            with to_stdout():
                sys.stdout.flush()
            if output.world is not None:
                output.world.leave()
        except typer.Exit:
            raise
        except BrokenPipeError:
            # The reader, for example `| head`, has closed the pipe.
            hush_stdout()
            raise typer.Exit(1) from None
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            reported = interruption(error, output.stop, resumes)
            prints, code = True, exit_code(reported)
            if output.world is not None:
                prints, code = output.world.report_failure(error, code)
            if prints:
                with suppress(OSError):
                    print(visible(error_line(reported)), file=sys.stderr, flush=True)
            raise typer.Exit(code) from None
        finally:
            loading.leave()
            release()


def interruption(error: BaseException, stop: StopFlag, resumes: bool) -> BaseException:
    """The error to report: after a signal an `Interrupted`, whatever exception a library made of the signal.

    `Interrupted`, `WriteError` and `NumericalError` are reported as they are, for they say whether the state was
    saved, and so is `LostContact`, after which a launcher sends a signal. Only a command that `resumes` mentions
    finished work.
    """
    if stop.requested is None or isinstance(error, (Interrupted, LostContact, WriteError, NumericalError)):
        return error
    if not resumes:
        reported = Interrupted("interrupted")
    elif isinstance(error, StopSignal) or not isinstance(error, KeyboardInterrupt):
        reported = Interrupted("interrupted; finished work is kept", hint="run the same command again")
    else:
        reported = Interrupted(error_line(error))
    reported.exit_code = 128 + stop.requested
    return reported


class Progress:
    """The `Reporter` of commands: a progress bar on a terminal, else a line every few seconds, with speed and ETA."""

    def __init__(self, output: Output, every: float = PLAIN_LINE_SECONDS) -> None:
        self.output, self.every, self.clock = output, every, Clock()
        self.stop, self.say = output.stop, output.say
        self.bar: Any = None
        self.task: Any = None
        if sys.stderr.isatty() and output.is_main and not output.quiet:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            text = (TextColumn(f"{{task.{column}}}") for column in ("description", "fields[text]"))
            self.bar = Bar(next(text), BarColumn(), next(text), console=Console(stderr=True), transient=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            with suppress(OSError):  # the terminal may be gone, which must not end the work
                self.bar.stop()

    @property
    def draws_bars(self) -> bool:
        """Whether libraries may draw their own progress bars."""
        return self.output.draws_bars

    def phase(self, text: str, unit: str = "it") -> None:
        """Start a new phase of the work, counted in `unit`s; raises `StopSignal` if a stop was requested."""
        self.output.stop.check()
        self._remove_bar()
        self.clock = Clock(unit)
        self.output.say(text)

    @contextmanager
    def aside(self, text: str, unit: str = "it") -> Iterator[None]:
        """Other work in the middle of a phase, with its own counter; its time does not count for the phase's speed."""
        phase, began = self.clock, time.monotonic()
        self.phase(text, unit)
        try:
            yield
        finally:
            self._remove_bar()
            phase.aside += time.monotonic() - began
            self.clock = phase

    def _remove_bar(self) -> None:
        """Remove the bar, so that other text can be printed in its place."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()
                if self.task is not None:
                    self.bar.remove_task(self.task)
        self.task = None

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show that `done` of `total` units are finished (0 starts the clock), with up to four metrics."""
        self.output.stop.check()
        now = time.monotonic()
        text = self.clock.describe(done, total, now)
        shown = list((metrics or {}).items())[:4]
        text += "".join(f"  {name} {value:.4g}" for name, value in shown)
        if self.bar is not None:
            with suppress(OSError):
                if self.task is None:
                    self.task = self.bar.add_task("", total=total, text=text)
                    self.bar.start()
                self.bar.update(self.task, completed=done, total=total, text=text)
        elif done and now - self.clock.printed_at >= self.every or done == total:
            self.clock.printed_at = now
            self.output.say(f"  {text}")
