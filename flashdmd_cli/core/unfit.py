"""The error for weights or configurations that cannot be used; in its own file, so that importing it needs no torch."""


class Unfit(ValueError):
    """Unusable weights or configuration. The message describes what was found; `hint` suggests what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
