"""The script of docs/ci.md, run as it stands by bash, with processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "ci.md"
SUITE = """
name: two
version: 1
world: shapes
prompts: {file: two.txt}
metrics: [{name: extra_objects, direction: lower, version: 1}, {name: exact, direction: higher, version: 1}]
"""


def test_the_script_tells_a_bad_student_from_a_broken_evaluation(tmp_path: Path) -> None:
    script = PAGE.read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    assert "least=${LEAST:-clip=0.32}" in script
    (tmp_path / "check.sh").write_text(script)
    (tmp_path / "two.yaml").write_text(SUITE)
    (tmp_path / "two.txt").write_text("a plain red circle above a dotted blue ring\n" * 2)
    program = tmp_path / "bin" / "flashdmd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flashdmd_cli "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PAGE.parents[1]),
        "OMP_NUM_THREADS": "1",
    }

    def check(least: str, checkpoint: str = "shapes-sdxl") -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "check.sh", checkpoint], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=environment | {"SUITE": "two.yaml", "LEAST": least},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, text = check("exact=1.1")
    assert code == 5 and "failed: exact=1.1" in text and "--fail-below: exact is" in text, text
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["metrics"]["exact"]["n"] == 2 and document["out"] == "runs/ci"
    code, text = check("exact=0")
    assert code == 0 and "passed: exact=0" in text and "2 of 2 pictures are in" in text, text
    code, text = check("exact=0", "nowhere")
    assert code == 3 and "not evaluated: exit code 3" in text, text
