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
    """Number of finished units at the first report, and its time."""
    aside: float = 0.0
    """Seconds since then that were spent on other work (`Progress.aside`)."""
    printed_at: float = -math.inf
    """Time of the last progress line."""
    seconds_each: bool | None = None
    """Whether the speed is given as seconds per unit, else as units per second; fixed by the first measurement."""

    def describe(self, done: int, total: int, now: float) -> str:
        """`30/400  2.5 it/s  ETA 2:43`. The ETA includes the time of other work, the speed does not."""
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
    """Three significant digits; numbers of 999 and more as integers, without an exponent."""
    return f"{value:.3g}" if value < 999 else f"{value:.0f}"
