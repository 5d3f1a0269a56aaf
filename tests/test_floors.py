"""Imports run downwards only: read with `ast`, so also those inside functions count."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import flashdmd_cli

PACKAGE = Path(flashdmd_cli.__file__).parent
FLOORS = {
    "core": 0,
    "models": 1,
    "data": 1,
    "runs": 1,
    "shapes": 1,
    "training": 2,
    "evaluation": 2,
    "export": 2,
    "building": 2,
    "workflows": 3,
    "cli": 4,
}
FORBIDDEN = {"runs": {"diffusers", "transformers", "peft", "segment_anything"}}
"""Libraries that a folder must not import."""


def imports(source: str, package: str) -> list[tuple[int, str]]:
    """(line, absolute module) of every import in `source`, a file of the dotted `package`."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def wrong(source: str, package: str) -> list[str]:
    """The imports of a file of `package` (`flashdmd_cli.folder[...]`) that break the house rules."""
    folder = package.split(".")[1]
    problems: list[str] = []
    for line, module in imports(source, package):
        top, _, rest = module.partition(".")
        if top == "flashdmd_cli":
            target = rest.split(".")[0]
            if target in FLOORS and target != folder and FLOORS[target] >= FLOORS[folder]:
                problems.append(f"line {line}: {folder} (floor {FLOORS[folder]}) imports {module}")
        elif top in FORBIDDEN.get(folder, set()):
            problems.append(f"line {line}: {folder} imports {top}")
        elif folder == "core" and top != "torch" and top not in sys.stdlib_module_names:
            problems.append(f"line {line}: core imports {top}; it may import torch only")
    return problems


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def test_every_folder_with_code_has_a_floor() -> None:
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_downwards(path: Path) -> None:
    package = ".".join(["flashdmd_cli", *path.relative_to(PACKAGE).parts[:-1]])
    assert wrong(path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from flashdmd_cli.models.sdxl import SDXLFamily", "flashdmd_cli.core"),
        ("from flashdmd_cli.runs.errors import InputError", "flashdmd_cli.data"),
        ("from flashdmd_cli import training", "flashdmd_cli.models"),
        ("from ..training import distill", "flashdmd_cli.evaluation"),
        ("from ...training import distill", "flashdmd_cli.evaluation.metrics"),
        ("def f():\n    import flashdmd_cli.cli.app", "flashdmd_cli.training"),
        ("import diffusers", "flashdmd_cli.runs"),
        ("import numpy", "flashdmd_cli.core"),
    ],
)
def test_wrong_imports_are_seen(source: str, package: str) -> None:
    assert wrong(source, package)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from flashdmd_cli.core.losses import dm_gradient", "flashdmd_cli.training"),
        ("from . import errors\nfrom .errors import InputError", "flashdmd_cli.runs"),
        ("import math, torch", "flashdmd_cli.core"),
        ("from flashdmd_cli import __version__", "flashdmd_cli.runs"),
    ],
)
def test_right_imports_pass(source: str, package: str) -> None:
    assert not wrong(source, package)
