"""The error of weights that are not what they should be; in a file of its own, since it needs no torch."""


class Unfit(ValueError):
    """Weights or a configuration that cannot be used, in words of what they are; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
