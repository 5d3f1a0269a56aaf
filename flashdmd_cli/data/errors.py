"""The error for unusable input data; the command line then exits with code 3."""

from __future__ import annotations


class DataError(ValueError):
    """Data that is missing, damaged or has a wrong format. `hint` suggests what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
