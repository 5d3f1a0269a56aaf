"""A dry run of `docs/experiments/gpu.sh` on the CPU, with tiny networks: on a GPU, mistakes would cost too much."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "experiments" / "gpu.sh"

pytestmark = pytest.mark.skipif(not all(map(shutil.which, ("bash", "timeout", "flock"))), reason="for Linux")


def dry_run(out: Path, parts: str) -> dict[str, Any]:
    """The summary of a dry run of some parts."""
    variables = {"SMALL": "1", "PARTS": parts, "OUT": str(out), "PYTHON": sys.executable, "DEMO_LIMIT": "2"}
    variables |= {"OMP_NUM_THREADS": "1", "SECONDS_IN_ALL": "3000"}
    subprocess.run(["bash", str(SCRIPT)], env=os.environ | variables, check=True, capture_output=True)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert summary["parts"].keys() == set(parts.split())
    return summary


def test_plans_are_put_beside_measurements_and_late_parts_are_cut_off(tmp_path: Path) -> None:
    summary = dry_run(tmp_path / "out", "plan int8 demo-sdxl demo-sd3")
    for name in ("plan", "int8"):
        assert summary["parts"][name]["result"] == "ok", summary
    for name in ("demo-sdxl", "demo-sd3"):  # whole demos would take minutes here: they only begin
        part = summary["parts"][name]
        assert part["result"] == "out of time" and "wrong" not in " ".join(part["end of its messages"])
    (row,) = summary["measured"]
    assert row["planned TFLOP a sample"] == pytest.approx(row["TFLOP a sample"], rel=0.02)
    assert row["peak GB"] > row["planned peak GB"] > 0  # on a CPU, all of the process's memory is measured
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plan.json", "int8.json", "summary.json"}


def test_a_killed_run_resumes_and_dmd2_is_measured(tmp_path: Path) -> None:
    summary = dry_run(tmp_path, "adapters-compiled resume full")
    assert {part["result"] for part in summary["parts"].values()} == {"ok"}, summary
    found = summary["resume"]
    assert found["exit code of the killed run"] == 137
    assert found["bit-identical"] == found["tensors"] > 100 and found["largest difference"] == 0
    assert [row["recipe"] for row in summary["measured"]] == ["sdxl-4step-24gb", "sdxl-4step", "sdxl-4step-dmd2"]
