"""The rows of a demo's table: the student, and the teacher with several samplers; their pictures and metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flashdmd_cli.runs.files import plain, replacing, write_text_atomically
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.drawers import Drawer, as_teacher, student_drawer
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.teachers import find_teacher

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.measuring import Evaluator
    from flashdmd_cli.evaluation.suites.shapes import ShapesSuite
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.recipe import Recipe

DRAWN_AT_ONCE = 32
"""Pictures that are drawn in one batch."""
SUITE = "shapes-demo"
"""The suite that is sampled and measured for every row."""
NUM_SHOWN = 8
TEACHER_ROWS: dict[str, tuple[Literal["ddim", "stochastic"], int]] = {
    "teacher_30": ("ddim", 30),
    "teacher_4_ddim": ("ddim", 4),
    "teacher_4_stochastic": ("stochastic", 4),
}
"""Rows of the teacher: name -> sampler and number of steps."""
ROWS = ("student_4", *TEACHER_ROWS)
REAL = "real"
"""A second set of real pictures, whose metrics are the best values that a model can be expected to reach."""


@dataclass(frozen=True)
class Stages:
    """Paths of a demo's files."""

    out: Path

    @property
    def data(self) -> Path:
        """Folder of the training data."""
        return self.out / "data"

    @property
    def student(self) -> Path:
        """Folder of the distillation run."""
        return self.out / "student"

    def metrics(self, row: str) -> Path:
        """JSON file with the metrics of one row."""
        return self.out / "eval" / f"{row}.json"

    def pictures(self, row: str) -> Path:
        """File with the pictures of one row, uint8."""
        return self.out / "pictures" / f"{row}.safetensors"


def suite_to_draw() -> ShapesSuite:
    """The suite: captions to sample, and metrics to measure."""
    from flashdmd_cli.evaluation.suites.shapes import ShapesSuite
    from flashdmd_cli.evaluation.suites.spec import read_suite

    suite = read_suite(SUITE)
    assert isinstance(suite, ShapesSuite)
    return suite


def load_teacher(recipe: Recipe, at: Stages) -> Family:
    """The teacher, on the device and in the number format that the student of this demo is trained with."""
    from flashdmd_cli.runs.device import read_note, resolve

    began = read_note(at.student)
    precision = began.precision if began is not None else recipe.model.precision
    return load_family(find_teacher(recipe.teacher), resolve(recipe.model.device, precision))


def draw(row: str, drawer: Drawer, captions: list[str], seed: int, at: Stages, reporter: Reporter) -> None:
    """Sample one picture per caption and save them with 8 bits per channel."""
    from safetensors.torch import save

    from flashdmd_cli.core.pictures import as_bytes

    reporter.phase(f"  {row.replace('_', ' ')}: {len(captions)} pictures, {drawer.steps} steps each", "picture")
    reporter.progress(0, len(captions))
    # Several at a time take two thirds of the processor time that single pictures take.
    pictures = drawer.draw_from(seed, captions, 0, reporter.progress, batch=DRAWN_AT_ONCE)
    with replacing(at.pictures(row)) as temporary:
        temporary.write_bytes(save({"pictures": as_bytes(pictures).contiguous()}))


def kept_pictures(row: str, at: Stages) -> Tensor:
    """The saved pictures of a row, (N, 3, H, W) uint8."""
    from safetensors.torch import load_file

    return load_file(at.pictures(row))["pictures"]


def draw_rows(recipe: Recipe, captions: list[str], seed: int, at: Stages, reporter: Reporter) -> None:
    """Sample the pictures of every row that has none yet."""
    missing = [row for row in ROWS if not at.pictures(row).is_file()]
    if not missing:
        return
    folder, family = find_teacher(recipe.teacher), load_teacher(recipe, at)
    for row in missing:
        if row in TEACHER_ROWS:
            drawer = as_teacher(family, recipe.teacher, folder, *TEACHER_ROWS[row])
        else:
            drawer = student_drawer(at.student, family=family)
        draw(row, drawer, captions, seed, at, reporter)


def measure(row: str, evaluator: Evaluator, suite: ShapesSuite, at: Stages) -> dict[str, Any]:
    """The metrics of a row, or of a second set of real pictures (`REAL`); measured once, then read from disk."""
    from flashdmd_cli.evaluation.suites.shapes import CEILING_SEED

    path = at.metrics(row)
    if not path.is_file():
        pictures = suite.references(CEILING_SEED) if row == REAL else [(kept_pictures(row, at), suite.rows)]
        metrics = evaluator.evaluate(pictures).as_dict()
        write_text_atomically(path, json.dumps(plain(metrics), indent=2) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))
