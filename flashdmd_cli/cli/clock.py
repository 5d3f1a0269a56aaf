"""Speed and remaining time of long work, as text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashdmd_cli.runs.reporter import duration


@dataclass
class Clock:
    """Speed and remaining time of one phase of the work."""

    unit: str = "it"
    first: tuple[int, float] | None = None
    """Number of finished units, and the time, from which the speed is measured: of the first
    report, then of the first one with a finished unit."""
    is_warm: bool = False
    """Whether a unit was finished before `first`; it includes loading, so that its time predicts nothing."""
    aside: float = 0.0
    """Seconds since then that were spent on other work (`Progress.aside`)."""
    printed_at: float = -math.inf
    """Time of the last progress line."""
    seconds_each: bool | None = None
    """Whether the speed is given as seconds per unit, else as units per second; fixed by the first measurement."""

    def describe(self, done: int, total: int, now: float) -> str:
        """`30/400  2.5 it/s  ETA 2:43`; without speed and ETA until units were finished after the first ones.

        The ETA includes the time of other work, the speed does not. Where all units were finished at once, the last
        line has the speed of these.
        """
        if self.first is None or done < self.first[0]:
            self._start(done, now, is_warm=False)
        assert self.first is not None
        num, seconds = done - self.first[0], max(now - self.first[1], 1e-9)
        text = f"{done}/{total}"
        if num > 0 and (self.is_warm or done == total):
            rate = num / max(seconds - self.aside, 1e-9)
            if self.seconds_each is None:
                self.seconds_each = rate < 1
            text += f"  {short(1 / rate)} s/{self.unit}" if self.seconds_each else f"  {short(rate)} {self.unit}/s"
            text += f"  ETA {duration((total - done) * seconds / num)}"
        if num > 0 and not self.is_warm:
            self._start(done, now, is_warm=True)
        return text

    def _start(self, done: int, now: float, is_warm: bool) -> None:
        """Measure the speed from here on."""
        self.first, self.is_warm, self.aside = (done, now), is_warm, 0.0


def short(value: float) -> str:
    """Three significant digits; numbers of 999 and more as integers, without an exponent."""
    return f"{value:.3g}" if value < 999 else f"{value:.0f}"
