"""The notebook's worth of Python in docs/python.md, run as it stands; and a workflow lets go of its folder."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import re
from pathlib import Path

from flashdmd_cli.runs import lock
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.workflows.prepare import prepare_shapes

from .test_cli import shipped, world  # noqa: F401
from .test_cli_align import reward  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_page_runs(world: Path, reward: Path, capsys) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {"REWARD": str(reward)}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    for folder, kind in {"nb/data": "data", "nb/student": "distill", "nb/aligned": "align", "nb/drawn": "sample",
                         "nb/measured": "eval", "nb/pipeline": "export"}.items():  # fmt: skip
        assert read_manifest(world / folder).kind == kind
    printed = capsys.readouterr().out
    assert "rendering" in printed and "composition" in printed


def test_a_workflow_lets_go_of_its_folder(world: Path) -> None:
    prepare_shapes("data", num=4)
    assert lock.last_locked() is None
