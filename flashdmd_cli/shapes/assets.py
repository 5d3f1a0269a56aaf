"""Location of the shipped assets of the embedded world."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def asset(name: str) -> Path:
    """Folder of a shipped asset (`shapes-sdxl`, `shapes-sam`, ...); `FileNotFoundError` if it is missing."""
    path = ASSETS / name
    if not path.is_dir():
        raise FileNotFoundError(f"asset {name!r} is not installed at {path}; build it with: flashdmd shapes build")
    return path
