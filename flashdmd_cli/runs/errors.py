"""Errors for people: one line that starts with the option or key to change, and a hint that names what to do next."""

from __future__ import annotations


class FlashDMDError(Exception):
    """A failure that is told in one line. `exit_code` is what the command ends with."""

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FlashDMDError):
    """Wrong usage or a wrong recipe."""

    exit_code = 2


class InputError(FlashDMDError):
    """Input that is missing, unreadable or damaged: data, manifest, weights."""

    exit_code = 3


class WriteError(InputError):
    """A place that cannot take what is written: full, read-only, not allowed."""


class NumericalError(FlashDMDError):
    """A non-finite or collapsed run."""

    exit_code = 4


class ThresholdError(FlashDMDError):
    """A threshold of `--fail-below` or `--fail-above` was missed."""

    exit_code = 5


class Interrupted(FlashDMDError):
    """Stopped by a signal with the state saved; the exit code is 128 + the signal's number (130, 143)."""

    def __init__(self, message: str, hint: str = "", signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
