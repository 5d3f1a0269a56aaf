"""Stopping on a signal: immediately, except where that would leave an inconsistent state.

Files are written atomically, so most work may end anywhere: the first SIGINT, SIGTERM or SIGHUP raises `StopSignal`
as soon as the current operation of torch is finished. Training postpones it while an iteration is logged and saved.
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
    """Raised at the current point of the program by the first signal; `except Exception` does not catch it."""


class StopFlag:
    """Context manager that handles SIGINT, SIGTERM and SIGHUP; `requested` is the number of the first one, else None.

    The first signal raises `StopSignal`; inside `postponed` it is only recorded, and a message goes to `say`. A second
    one raises a plain `KeyboardInterrupt` in any case. Outside the main thread, where Python allows no signal handlers,
    signals are not handled, and `requested` stays None unless `request` is called.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.requested: int | None = None
        self.say = say
        self._raises = True
        self._previous: dict[signal.Signals, Any] = {}

    def request(self, number: int) -> None:
        """Request a stop at the next `check`, as the signal `number` would."""
        self.requested = int(number)

    def check(self) -> None:
        """Raise `StopSignal` if a stop was requested and is not postponed.

        Long work calls this regularly, since a library may have caught the exception that the signal raised.
        """
        if self.requested is not None and self._raises:
            raise StopSignal

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside, a first signal is only recorded; the caller reads `requested` or calls `check` afterwards."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before

    @contextlib.contextmanager
    def answering(self, wanted: bool = True) -> Iterator[None]:
        """Part of `postponed` work in which signals raise again, if `wanted`; a recorded signal raises at once."""
        before, self._raises = self._raises, wanted or self._raises
        try:
            self.check()
            yield
        finally:
            self._raises = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.request(number)
        self.check()
        if self.say is not None:
            self.say("stopping after this step and saving; a second signal stops at once and loses unsaved work")

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            # SIGHUP stays ignored if `nohup` has set that.
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
