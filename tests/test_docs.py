"""The documentation: its commands run, or say why not; its options exist; the site builds.

Lines of docs/data.md and docs/tutorial.md that begin with `flashdmd` run in this process, with teachers of random
weights in place of the shipped ones; all others in bash.
"""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flashdmd_cli.cli.app import app
from flashdmd_cli.core.grid import flow_grid
from flashdmd_cli.families.noise import noise_schedule
from flashdmd_cli.runs.recipe import recipe_keys
from flashdmd_cli.runs.recipe_schema import Recipe
from flashdmd_cli.runs.reward_schema import RewardRecipe

from .test_cli import run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401
from .test_sources import coco

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"(?:<!-- (not run|only in a fresh clone): [^>]*-->\n)?```(\w*)\n(.*?)```", re.DOTALL)
"""A fenced block: the reason why a test does not run it, its language, its text."""
RUN_ELSEWHERE = {"python.md": "test_python.py", "ci.md": "test_ci_page.py"}
"""Pages that other tests run."""
COMMAND = re.compile(r"\bflashdmd (?=[a-z])")
RESULTS = {
    "data.md": """from-folder from-names from-table from-tars from-parquet coco10k from-prompts filtered pooled student
                  cached-student no-gan""".split(),
    "tutorial.md": [f"runs/{name}" for name in "data student samples eval-student eval-teacher exported".split()],
}
SMALLER = {"--num 2000": "--num 24", "--iterations 100": "--iterations 1", "--limit 64": "--limit 4",
           "--recipe shapes-4step-demo":
               "--recipe shapes-4step-demo --set train.batch=2 --set train.micro_batch=2"}  # fmt: skip
"""Options of the tutorial -> what the test runs in their place."""


@pytest.mark.parametrize("name", RESULTS)
def test_every_example_runs(world, name):
    coco(world / "coco" / "annotations", 10_020)
    text = (DOCS / name).read_text(encoding="utf-8")
    for before, after in SMALLER.items() if name == "tutorial.md" else ():
        assert before in text
        text = text.replace(before, after)
    blocks = [(kind, block) for skipped, kind, block in BLOCK.findall(text) if not skipped]
    assert len(blocks) >= 6
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, name, "exec"), {})
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            if program == "flashdmd":
                result = run(*words)
                assert result.exit_code == 0, f"{line}\n{result.output}"
            else:
                subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True)
    for folder in RESULTS[name]:
        assert (world / folder / "manifest.json").is_file(), folder


@pytest.mark.parametrize("path", [path for path in PAGES if path.parent == DOCS], ids=lambda path: path.name)
def test_a_command_that_no_test_runs_says_why(path):
    """In a fenced block with `<!-- not run: WHY -->` above it; an indented block has no place for the reason."""
    text = path.read_text(encoding="utf-8")
    indented = [line for line in BLOCK.sub("", text).splitlines() if re.match(r" {4}(flashdmd|torchrun) ", line)]
    assert indented == []
    if path.name not in {*RESULTS, *RUN_ELSEWHERE}:
        silent = [block for skipped, _, block in BLOCK.findall(text) if COMMAND.search(block) and not skipped]
        assert silent == []


def used(text: str) -> Iterator[list[str]]:
    """The words of each command in blocks and in `code`, without comments."""
    texts = [re.sub(r"\s*\\\n\s*", " ", block) for _, _, block in BLOCK.findall(text)]
    texts += re.findall(r"`(flashdmd [^`]*)`", BLOCK.sub("", text).replace("\n", " "))
    for line in "\n".join(texts).splitlines():
        for command in COMMAND.split(line)[1:]:
            yield re.split(r" #| && | > |;|  +", command)[0].replace('"', " ").replace("'", " ").split()


def unknown(words: list[str]) -> list[str]:
    """The options of a command that it does not have; the whole if there is no such command."""
    command: Any = get_command(app)
    rest = list(words)
    while rest and rest[0].rstrip(",.") in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0).rstrip(",.")]
    if command.name not in (names := {*get_command(app).commands}) and len(rest) == len(words):
        return [] if words[0].isupper() or words[0] == "COMMAND" else [" ".join(words), *sorted(names)]
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    return [word for word in rest if re.match(r"--[a-z]", word) and word.partition("=")[0].rstrip(",.:)") not in own]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_options_exist(path):
    wrong = {" ".join(words): found for words in used(path.read_text(encoding="utf-8")) if (found := unknown(words))}
    assert wrong == {}


def test_an_unknown_option_is_seen():
    assert unknown(["distill", "--teacher", "sdxl", "--stepz", "4"]) == ["--stepz"]
    assert unknown(["eval", "compare", "a", "b", "--limit", "4"]) == ["--limit"] and unknown(["paint"])
    text = "`flashdmd eval\n--suite x` and\n```\nflashdmd inspect a \\\n  --b  # --c\n```\n"
    assert list(used(text)) == [["inspect", "a", "--b"], ["eval", "--suite", "x"]]


def test_equations_name_functions_that_exist():
    section = (DOCS / "method.md").read_text(encoding="utf-8").split("## Equations and functions")[1].split("\n## ")[0]
    names = re.findall(r"`((?:core|training)\.[\w.]+)`", section)
    assert len(names) > 20
    for name in names:
        module, *attributes = name.split(".")[:2], *name.split(".")[2:]
        found: Any = importlib.import_module("flashdmd_cli." + ".".join(module))
        for attribute in attributes:
            found = getattr(found, attribute)
        assert callable(found), name


def test_sigmas_of_the_comfyui_page_are_the_grids():
    rows = re.findall(r"^\| (SDXL|SD3), (\d) steps \| ([\d., ]+) \|", (DOCS / "comfyui.md").read_text(), re.MULTILINE)
    assert len(rows) == 3
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    alphas = noise_schedule(betas).alphas_cumprod.double()
    for family, steps, text in rows:
        written = [float(each) for each in text.split(",")]
        count = int(steps)
        if family == "SD3":
            expected = [t / 1000 for t in flow_grid(count, 3.0).timesteps]
        else:
            times = [999 - i * 1000 // count for i in range(count)]
            expected = [float(((1 - alphas[t]) / alphas[t]) ** 0.5) for t in times]
        assert written == pytest.approx([*expected, 0.0], abs=6e-5)


def test_site_builds_offline(tmp_path):
    """Strict: a broken link or a page that is missing in the navigation is an error."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9"}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    done = subprocess.run([*command, "--site-dir", str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=["']?(https?:)?//""")
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")
    }
    assert [name for name, text in pages.items() if loaded.search(text)] == []
    for css in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", css.read_text(encoding="utf-8")), css
    recipes, commands = pages["reference/recipes/index.html"], pages["reference/commands/index.html"]
    for key in (*recipe_keys(Recipe), *recipe_keys(RewardRecipe)):
        assert f"<code>{key}</code>" in recipes, key
    assert "--stop-on-collapse" in commands and "flashdmd eval compare" in commands
    assert len([name for name in pages if name.startswith("log/")]) == len(list((DOCS / "log").glob("*.md")))
