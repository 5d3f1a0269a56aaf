"""A message before slow imports, so that the user knows what a command waits for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder

HEAVY = ("torch", "diffusers", "transformers")
"""Libraries whose import takes seconds, on a busy machine half a minute."""


class ImportNotice(MetaPathFinder):
    """Prints one line before the first import of a heavy library, then removes itself from the import system."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Always None, so that Python's own finders load the module."""
        if name in HEAVY:
            self.leave()
            self.say("loading torch and diffusers ...")

    def enter(self) -> None:
        """Install the finder, unless one of the libraries is imported already."""
        if not any(name in sys.modules for name in HEAVY):
            sys.meta_path.insert(0, self)

    def leave(self) -> None:
        """Remove the finder."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
