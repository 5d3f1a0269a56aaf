"""Imports run downwards only: read with `ast`, so also those inside functions count."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import flashdmd_cli

PACKAGE = Path(flashdmd_cli.__file__).parent
FLOORS = {
    "core": 0,
    "networks": 1,
    "families": 1,
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
FORBIDDEN = {"runs": {"diffusers", "transformers", "peft", "segment_anything"}, "workflows": {"typer", "rich"}}
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


def talks(source: str) -> list[str]:
    """What a workflow must not do: print, or end the process."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [name for call in calls if (name := ast.unparse(call)) in ("print", "exit", "sys.exit", "os._exit")]


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
    if folder == "workflows":
        problems += [f"workflows calls {name}" for name in talks(source)]
    return problems


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, the first one repeated at the end; empty where there is none.

    `sources` maps the dotted name of each module to its source; a package is named as its `__init__.py` would be
    (`a.b.__init__`). Imports inside functions, and those for type checkers alone, count as well.
    """
    modules = {name.removesuffix(".__init__"): name for name in sources}
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        found = graph.setdefault(name.removesuffix(".__init__"), set())
        for _, target in imports(source, name.rpartition(".")[0]):
            while target and target not in modules:  # a name inside a module
                target = target.rpartition(".")[0]
            found |= {target} - {""}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


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
        ("from flashdmd_cli.families.sdxl.family import SDXLFamily", "flashdmd_cli.core"),
        ("from flashdmd_cli.runs.errors import InputError", "flashdmd_cli.data"),
        ("from flashdmd_cli import training", "flashdmd_cli.families"),
        ("from ..training import distill", "flashdmd_cli.evaluation"),
        ("from ...training import distill", "flashdmd_cli.evaluation.metrics"),
        ("def f():\n    import flashdmd_cli.cli.app", "flashdmd_cli.training"),
        ("import diffusers", "flashdmd_cli.runs"),
        ("import numpy", "flashdmd_cli.core"),
        ("from flashdmd_cli.cli.output import Output", "flashdmd_cli.workflows"),
        ("import typer", "flashdmd_cli.workflows.demo"),
        ("def f():\n    print(1)", "flashdmd_cli.workflows"),
        ("import sys\nsys.exit(1)", "flashdmd_cli.workflows"),
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


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {
        ".".join(["flashdmd_cli", *path.relative_to(PACKAGE).with_suffix("").parts]): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
    }
    assert len(sources) > 100 and cycle(sources) == []


@pytest.mark.parametrize(
    "back",
    [
        "from p.a import x",
        "from p import a",
        "def f():\n    import p.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .. import a",
    ],
)
def test_a_circle_is_seen(back: str) -> None:
    line = {"p.__init__": "", "p.a": "from p.q import b", "p.q.__init__": "", "p.q.b": "from p.q.c import y"}
    assert cycle(line | {"p.q.c": "import p.d", "p.d": ""}) == []
    assert set(cycle(line | {"p.q.c": back})) == {"p.a", "p.q.b", "p.q.c"}
