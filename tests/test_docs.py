"""The examples of docs/data.md, run as they stand, in one folder, one after the other.

Lines that begin with `flashdmd` run in this process, with teachers of random weights in place of the shipped ones; all
others in bash.
"""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from .test_cli import run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401
from .test_sources import coco

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
BLOCK = re.compile(r"(<!-- not run -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
RESULTS = """from-folder from-names from-table from-tars from-parquet coco10k from-prompts filtered pooled student
             cached-student no-gan""".split()


def test_every_example_runs(world):
    coco(world / "coco" / "annotations", 10_020)
    blocks = [(kind, text) for skipped, kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if not skipped]
    assert len(blocks) >= 12
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            name, *words = shlex.split(line)
            if name == "flashdmd":
                result = run(*words)
                assert result.exit_code == 0, f"{line}\n{result.output}"
            else:
                subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True)
    for name in RESULTS:
        assert (world / name / "manifest.json").is_file(), name
