"""Every kind of page, written from captions, names and texts that try to run a script, and what may be in it."""

from __future__ import annotations

import html
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import torch
import yaml
from typer.testing import CliRunner

from flashdmd_cli.cli.app import app
from flashdmd_cli.evaluation.page import write_page
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.workflows.demo.page import NAMES, demo_page

from .messy import encoded, picture

RUNS = "document.documentElement.dataset.ran=1"
"""What the scripts do: the attribute `data-ran` of the page shows that one ran."""
HOSTILE = (
    f"<script>{RUNS}</script>",
    f"<img src=x onerror={RUNS}>",
    f'"><svg onload="{RUNS}">',
    f"'-->]]></style></title></textarea><script>{RUNS}</script>",
    f"</script><script>{RUNS}</script>",
    f"`<iframe srcdoc='<script>parent.{RUNS}</script>'>`",
    f"<a href='javascript:{RUNS}' id=x>y</a><body onload={RUNS}>",
    f"{{{{ 1 }}}}{{% raw %}}<script>{RUNS}</script>&lt;script&gt;&#60;script&#62;",
    f"\u2028<script>{RUNS}</script>\u202e\x1b[31m",
    f"[x](javascript:{RUNS}) ![x](x){{onerror={RUNS}}}",
)
NAME = f"<img src=x onerror={RUNS.replace('.', '&#46;')}>"
"""Fits into a file name, and into a single value of YAML."""


def run(*words: object) -> None:
    """Run a command that has to succeed."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output


def write_pages(teacher: Path, sam: Path) -> dict[str, Path]:
    """The pages by their kind, in the current folder; `teacher` and `sam` have small networks."""
    source = Path("<b onclick=x>source")
    source.mkdir()
    for number, text in enumerate(HOSTILE):
        name = f"{NAME} {number:02d}"
        (source / f"{name}.png").write_bytes(encoded(picture(number, 16 if number % 2 else 48, 48)))
        (source / f"{name}.txt").write_text(text, encoding="utf-8")
    (source / f"{NAME}.json").write_text("{}")
    (source / f"{NAME} 00.json").write_text(json.dumps({HOSTILE[0]: 0.5, "aesthetic": 6.5}))
    run("prepare-data", source, "--out", "data", "--resolution", 32, "--filter", "min_side>=32")
    rows = [{"id": text, "prompt": text, "file_name": f"{NAME} {i:02d}.png"} for i, text in enumerate(HOSTILE)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in (f"{NAME}a", f"{NAME}b"):
        run("eval", "--images", source, "--prompts", "prompts.jsonl", "--metrics", "saturation", "--out", name)
    run("eval", "compare", f"{NAME}a", f"{NAME}b", "--out", "compared")
    recipe = {"base": "shapes-4step", "name": NAME, "train": {"batch": 2, "micro_batch": 2, "iterations": 2}}
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    run("prepare-data", "shapes", "--num", 4, "--out", "shapes")
    run(
        "distill",
        "--recipe",
        "r.yaml",
        "--teacher",
        teacher,
        "--data",
        "shapes",
        "--set",
        f"gan.sam={sam}",
        "--out",
        "run",
    )
    found = {"run": Path("run/page.html"), "data": Path("data/report.html"), "demo": Path("demo.html"),
             "evaluation": Path(f"{NAME}a/report.html"), "comparison": Path("compared/report.html")}  # fmt: skip
    values = {name: 0.5 for name in ("composition", "frechet", "high_frequency", "coverage", "diversity")}
    measured = {**values, "intervals": {name: [0.4, 0.6] for name in values}, "num_pictures": 2}
    pictures = {name: torch.zeros(len(HOSTILE), 3, 8, 8) for name in NAMES}
    page = demo_page(load_recipe("shapes-4step"), dict.fromkeys([*NAMES, "real"], measured), pictures, HOSTILE, [], 1.0)
    write_page(found["demo"], page)
    return {name: path.absolute() for name, path in found.items()}


class Dangers(HTMLParser):
    """Collects what could run, load or leave a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("iframe", "object", "embed", "form", "base", "link", "portal"):
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            text = (value or "").strip().lower()
            if name.startswith("on") or name in ("srcdoc", "formaction"):
                self.found.append(f"<{tag} {name}>")
            if name in ("src", "href", "xlink:href", "action") and not text.startswith(("data:image/", "#")):
                self.found.append(f"<{tag} {name}={text[:40]}>")
        self.script = tag == "script"

    def handle_data(self, data: str) -> None:
        if getattr(self, "script", False) and ("dataset.ran" in data or "</" in data):
            self.found.append("foreign text in <script>")
        self.script = False


def dangers(text: str) -> list[str]:
    """What a page of ours must not have: handlers, frames, links and files from elsewhere, foreign text in scripts."""
    parser = Dangers()
    parser.feed(text)
    if "default-src 'none'" not in html.unescape(text):
        parser.found.append("no content security policy")
    return parser.found


def in_folder(folder: Path, teacher: Path, sam: Path) -> dict[str, Path]:
    """`write_pages` with `folder` as the current one."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        return write_pages(teacher, sam)
    finally:
        os.chdir(here)
