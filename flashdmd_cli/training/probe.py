"""Tripwires: signs in a run's own figures that it is going wrong, told before the pictures show it."""

from __future__ import annotations

from typing import Any

D_WIN_LOSS = 0.135
D_WIN_STREAK = 3
BRIGHTNESS_DRIFT = 0.10
SMOOTHING = 0.9


class Probe:
    """Watches the figures of each iteration. `memory` is JSON-able and belongs to the run's state."""

    def __init__(self, memory: dict[str, Any]) -> None:
        self.memory = memory

    def check(self, figures: dict[str, float]) -> list[str]:
        """Warnings of this iteration; each kind is told once until it has gone away."""
        found = {"d_win": self._d_win(figures), "brightness": self._brightness(figures)}
        told = self.memory.setdefault("told", [])
        warnings = [text for kind, text in found.items() if text and kind not in told]
        self.memory.setdefault("warnings", []).extend(warnings)
        self.memory["told"] = [kind for kind, text in found.items() if text]
        figures["tripwires"] = float(len(self.memory["told"]))
        return warnings

    def _d_win(self, figures: dict[str, float]) -> str | None:
        """The discriminator tells everything apart: its gradient no longer says which way is better."""
        loss = figures.get("discriminator")
        streak = self.memory.get("d_win_streak", 0) + 1 if loss is not None and loss <= D_WIN_LOSS else 0
        self.memory["d_win_streak"] = streak
        if streak < D_WIN_STREAK:
            return None
        return f"discriminator loss below {D_WIN_LOSS} for {streak} iterations: lower optim.lr_discriminator"

    def _brightness(self, figures: dict[str, float]) -> str | None:
        """The student's pictures become darker or brighter than real ones, on [0, 1], smoothed over iterations."""
        if "brightness/student" not in figures:
            return None
        now = (figures["brightness/student"] - figures["brightness/real"]) / 2
        drift = SMOOTHING * self.memory.get("drift", now) + (1 - SMOOTHING) * now
        self.memory["drift"] = drift
        figures["brightness/drift"] = drift
        if abs(drift) <= BRIGHTNESS_DRIFT:
            return None
        return f"student {abs(drift):.0%} {'brighter' if drift > 0 else 'darker'} than real pictures: lower dm.guidance"
