"""Stopping politely: the first signal asks the loop to finish its step and save, the second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Context manager that catches SIGINT and SIGTERM; `requested` is the signal's number once one came, else None.

    A second signal raises `KeyboardInterrupt` where the program stands. Outside the main thread, where Python allows
    no handlers, it catches nothing and `requested` stays None unless `request` is called. `say` is told at once what
    the first signal does: a step of training may take a minute.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.requested: int | None = None
        self.say = say
        self._previous: dict[signal.Signals, Any] = {}

    def request(self, number: int) -> None:
        """Ask for a stop, as the signal `number` would."""
        self.requested = int(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.request(number)
        if self.say is not None:
            self.say("stopping after this step, then saving; once more stops at once and loses what is not saved")

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._previous = {which: signal.signal(which, self._handle) for which in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler if handler is not None else signal.SIG_DFL)
        self._previous = {}
