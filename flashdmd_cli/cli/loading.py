"""A first word to a person who waits for imports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder

HEAVY = ("torch", "diffusers", "transformers")
"""Libraries whose import takes seconds, on a busy machine half a minute."""


class TellsOfLoading(MetaPathFinder):
    """Says a line before the first import of a heavy library, whichever command comes to it, and then steps aside."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """None: the module is found by those who come next."""
        if name in HEAVY:
            self.leave()
            self.say("loading torch and diffusers ...")

    def enter(self) -> None:
        """Begin to listen, unless one of the libraries is there already."""
        if not any(name in sys.modules for name in HEAVY):
            sys.meta_path.insert(0, self)

    def leave(self) -> None:
        """Listen no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
