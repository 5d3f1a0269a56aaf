"""Stopping when asked: a signal ends the work where it stands, except where that would tear something.

Files are written whole or not at all, so most work may end anywhere: the first SIGINT, SIGTERM or SIGHUP raises
`StopSignal` there, within one operation of torch. Training postpones it while a step is noted and saved.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignal(KeyboardInterrupt):
    """Raised where the program stands when it is asked to stop; no `except Exception` on the way holds it up."""


class StopFlag:
    """Context manager that answers SIGINT, SIGTERM and SIGHUP; `requested` is the first one's number, else None.

    The first signal raises `StopSignal`, or inside `postponed` is noted, and `say` is told so. A second one raises a
    plain `KeyboardInterrupt` wherever the program stands. Outside the main thread, where Python allows no handlers, it
    catches nothing and `requested` stays None unless `request` is called.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.requested: int | None = None
        self.say = say
        self._answers = True
        self._previous: dict[signal.Signals, Any] = {}

    def request(self, number: int) -> None:
        """Ask for a stop at the next `check`, as the signal `number` would."""
        self.requested = int(number)

    def check(self) -> None:
        """Raise `StopSignal` if a stop was asked for and is not postponed.

        Long work calls this now and then, for a library may have swallowed what the signal raised.
        """
        if self.requested is not None and self._answers:
            raise StopSignal

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside, a first signal is noted only; what follows asks for `requested`, or calls `check`."""
        before, self._answers = self._answers, False
        try:
            yield
        finally:
            self._answers = before

    @contextlib.contextmanager
    def answering(self, wanted: bool = True) -> Iterator[None]:
        """A stretch of `postponed` work that a signal may end anywhere, if `wanted`; one that is noted ends it now."""
        before, self._answers = self._answers, wanted or self._answers
        try:
            self.check()
            yield
        finally:
            self._answers = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.request(number)
        self.check()
        if self.say is not None:
            self.say("stopping after this step, then saving; once more stops at once and loses what is not saved")

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            # What `nohup` has set to be ignored stays ignored.
            nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            caught = [which for which in _SIGNALS if not (nohup and which == signal.SIGHUP)]
            self._previous = {which: signal.signal(which, self._handle) for which in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler if handler is not None else signal.SIG_DFL)
        self._previous = {}
