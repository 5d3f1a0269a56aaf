"""Errors for users: one line that starts with the option or recipe key, and a hint what to do next."""

from __future__ import annotations


class FlashDMDError(Exception):
    """An error that is printed as one line; the command then exits with `exit_code`."""

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
    """A path that cannot be written: full disk, read-only file system or missing permission."""


class NumericalError(FlashDMDError):
    """A run with non-finite gradients, or one that collapsed."""

    exit_code = 4


class ThresholdError(FlashDMDError):
    """A threshold of `--fail-below` or `--fail-above` was missed."""

    exit_code = 5


class LostContact(FlashDMDError):
    """Another process of the same run has ended, so that this one cannot continue."""


class Interrupted(FlashDMDError):
    """Stopped by a signal with the state saved; the exit code is 128 + the signal's number (130, 143)."""

    def __init__(self, message: str, hint: str = "", signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
