"""Tripwires: checks of a run's metrics that warn of a failing training before its pictures show it."""

from __future__ import annotations

from typing import Any

from flashdmd_cli.runs.align_schema import Bands

SMOOTHING = 0.9
"""Decay of the exponential moving averages."""
NUM_BEFORE = 10
"""Number of student updates after which a gradient is compared with the mean of the earlier ones."""
NUM_PICTURES = 64
"""Number of pictures after which their mean brightness is compared with that of real ones. The brightness of single
pictures has a standard deviation of about 0.2, so the difference of two means of n has 0.2 sqrt(2 / n): for 64 a third
of the default band of 0.10."""


class Probe:
    """Watches the metrics of each iteration, which come from `batch` pictures.

    `memory` can be stored as JSON and belongs to the run's state. Brightness is compared only after 64 pictures
    (`NUM_PICTURES`), because that of one small batch depends on its captions more than on the student.
    """

    def __init__(self, memory: dict[str, Any], bands: Bands, batch: int = NUM_PICTURES) -> None:
        self.memory, self.bands, self.batch = memory, bands, batch

    def check(self, metrics: dict[str, float]) -> list[str]:
        """New warnings of this iteration; a tripwire that stays active warns only once. Adds to `metrics`."""
        checks = {
            "d_win": ("discriminator", self._d_win),
            "brightness": ("brightness/student", self._brightness),
            "dm_gradient": ("output_grad/dm", self._dm_gradient),
            "idle": ("pairs", self._idle),
        }
        active, warnings = self.memory.setdefault("told", []), []
        for kind, (needed, check) in checks.items():
            if needed not in metrics:
                continue  # not every iteration has every metric; the last result remains valid
            warning = check(metrics)
            if warning and kind not in active:
                warnings.append(warning)
                active.append(kind)
            elif not warning and kind in active:
                active.remove(kind)
        self.memory.setdefault("warnings", []).extend(warnings)
        metrics["tripwires"] = float(len(active))
        return warnings

    def _d_win(self, metrics: dict[str, float]) -> str | None:
        """The discriminator separates real and fake perfectly, so its gradient is no longer informative."""
        lost = metrics["discriminator"] <= self.bands.d_win_loss
        streak = self.memory["d_win_streak"] = self.memory.get("d_win_streak", 0) + 1 if lost else 0
        if streak < self.bands.d_win_streak:
            return None
        low = self.bands.d_win_loss
        return f"discriminator loss below {low} for {streak} iterations: lower optim.lr_discriminator"

    def _dm_gradient(self, metrics: dict[str, float]) -> str | None:
        """The distribution-matching gradient grows far beyond its running mean: student and fake score diverge."""
        now = metrics["output_grad/dm"]
        mean, count = self.memory.get("dm_gradient", (0.0, 0))
        if count >= NUM_BEFORE and now > self.bands.dm_gradient * mean:
            # Outliers are not added to the running mean.
            return f"distribution-matching gradient {now / mean:.1f} times its running mean: lower optim.lr_student"
        share = 1 / (count + 1) if count < NUM_BEFORE else 1 - SMOOTHING
        self.memory["dm_gradient"] = ((1 - share) * mean + share * now, count + 1)
        return None

    def _idle(self, metrics: dict[str, float]) -> str | None:
        """Most preference steps have no pair above the threshold, so they do not update the student."""
        idle = self.memory["idle"] = SMOOTHING * self.memory.get("idle", 0.0) + (1 - SMOOTHING) * (
            metrics["pairs"] == 0
        )
        if idle <= 0.5:
            return None
        return "most iterations keep no pair and teach nothing: lower align.threshold or raise align.candidates"

    def _brightness(self, metrics: dict[str, float]) -> str | None:
        """The student's pictures become darker or brighter than real ones, on [0, 1], over many pictures.

        Up to `NUM_PICTURES` pictures it is their mean, without a warning; afterwards a moving average.
        """
        now = (metrics["brightness/student"] - metrics["brightness/real"]) / 2
        seen = self.memory["drift_pictures"] = self.memory.get("drift_pictures", 0) + self.batch
        share = self.batch / seen if seen <= NUM_PICTURES else min(1 - SMOOTHING, self.batch / NUM_PICTURES)
        drift = (1 - share) * self.memory.get("drift", now) + share * now
        self.memory["drift"] = drift
        metrics["brightness/drift"] = drift
        if seen < NUM_PICTURES or abs(drift) <= self.bands.brightness_drift:
            return None
        return f"student {abs(drift):.0%} {'brighter' if drift > 0 else 'darker'} than real pictures: lower dm.guidance"
