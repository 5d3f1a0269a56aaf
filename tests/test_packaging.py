"""The recipes stand on the top level; wheels, sdists and editable installs all find them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flashdmd_cli.evaluation.backends.upstream import PINS
from flashdmd_cli.runs.recipe import list_recipes

ROOT = Path(__file__).parents[1]
SAY = "from flashdmd_cli.runs import recipe; print(recipe.RECIPES, *recipe.list_recipes(), sep='\\n')"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that packaging reads, without the models: a build takes a second."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    leave = shutil.ignore_patterns("assets", "__pycache__")
    for name in ("flashdmd_cli", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    return folder


def build(folder: Path, target: str, out: Path) -> Path:
    """The wheel or sdist that hatchling makes of a checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


def recipes_of(installed: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Where the package in `installed` has its recipes, and their names, asked from another folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", SAY], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    folder, *names = done.stdout.split("\n")[:-1]
    return Path(folder), names


def test_a_checkout_finds_them_on_the_top_level(checkout, tmp_path):
    """An editable install reads the checkout."""
    assert recipes_of(checkout, tmp_path) == (checkout / "recipes", list_recipes())


def test_a_wheel_carries_them_inside_the_package(checkout, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(build(checkout, "wheel", tmp_path / "dist")).extractall(site)
    assert recipes_of(site, tmp_path) == (site / "flashdmd_cli" / "recipes", list_recipes())


def test_an_sdist_makes_the_same_wheel(checkout, tmp_path):
    with tarfile.open(build(checkout, "sdist", tmp_path / "dist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("flashdmd-*")
    wheels = [build(each, "wheel", tmp_path / name) for each, name in ((unpacked, "one"), (checkout, "two"))]
    one, two = (sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels)
    assert one == two
    assert sum(name.startswith("flashdmd_cli/recipes/") for name in one) == len(list_recipes())
    suites = {path.name for path in (ROOT / "flashdmd_cli" / "evaluation" / "suites").glob("shapes*.[yt]*")}
    assert suites > {"shapes1k.yaml", "shapes1k.txt"}
    templates = {path.name for path in (ROOT / "flashdmd_cli" / "evaluation" / "templates").iterdir()}
    assert templates > {"page.html", "page.css", "page.js"}
    assert {f"flashdmd_cli/evaluation/templates/{name}" for name in templates} <= set(one)
    assert {f"flashdmd_cli/evaluation/suites/{name}" for name in suites} <= set(one)


def test_extras_fit_and_what_cannot_be_installed_beside_is_none():
    """`lpips` has no upper bounds on anything; image-reward and hpsv2 pin what this package excludes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"docs", "lpips", "onnx", "test"} and Requirement(extras["lpips"][0]).specifier.contains(
        "0.1.4"
    )
    needed = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}
    pins = dict(pin.split("==") for pin in PINS)
    assert not {"image-reward", "hpsv2"} & needed.keys()
    assert {name for name in ("transformers", "diffusers") if needed[name].contains(pins[name])} == set()
