"""What can be wrong with data that a user brings; the command line answers with exit code 3."""

from __future__ import annotations


class DataError(ValueError):
    """Data that is missing, damaged or of the wrong form. `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
