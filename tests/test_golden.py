"""Loss curves of 20 iterations, held against stored ones: a change that moves them needs a line under `Numerics`.

Written anew with `FLASHDMD_WRITE_GOLDEN=1 pytest tests/test_golden.py`. On one machine the curves are equal bit for bit
(the second test); between processors the order of additions differs, so the stored ones are held to 0.1%.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.training.distill import distill

from .test_distill import QUIET, sam_folder  # noqa: F401

GOLDEN = Path(__file__).parent / "golden"
WATCHED = ("dm", "gan", "fake", "discriminator", "grad_norm/student", "grad_norm/fake")


def curve(name, family, sam, data, out, iterations=20):
    flags = {"train.batch": 2, "train.micro_batch": 2, "train.iterations": iterations, "train.resolution": 32}
    flags |= {"model.precision": "fp32"}
    distill(load_recipe(name, flags=flags), family, sam, data, out, QUIET, StopFlag())
    return [{key: row[key] for key in WATCHED if key in row} for row in read_metrics(out)]


@pytest.mark.parametrize("name", ["shapes-4step", "shapes-4step-dmd2"])
def test_curve_equals_the_stored_one(name, tiny_family, sam_folder, random_data, tmp_path):  # noqa: F811
    rows = curve(name, tiny_family, sam_folder, random_data, tmp_path)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("FLASHDMD_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    expected = json.loads(path.read_text())
    assert len(rows) == len(expected) == 20
    for step, (row, golden) in enumerate(zip(rows, expected, strict=True)):
        assert row == pytest.approx(golden, rel=1e-3, abs=1e-6), f"iteration {step}"


def test_curve_repeats_bit_for_bit(tiny_family, sam_folder, random_data, tmp_path):  # noqa: F811
    first = curve("shapes-4step", tiny_family, sam_folder, random_data, tmp_path / "a", 3)
    assert first == curve("shapes-4step", tiny_family, sam_folder, random_data, tmp_path / "b", 3)
