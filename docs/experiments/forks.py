"""For experiments that run commands in forks of their own process, so that torch is imported only once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from flashdmd_cli.cli.app import app


class Folders(pytest.TempPathFactory):
    """Stands in for pytest's factory, for the fixtures that make the tiny networks."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mktemp(self, basename: str, numbered: bool = True) -> Path:
        (self.root / basename).mkdir()
        return self.root / basename


def run_and_exit(words: list[str]) -> NoReturn:
    """Run a command in a fork, and end the fork with its exit code."""
    code = 1
    try:
        app(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        os._exit(code)
