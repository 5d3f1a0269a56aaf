"""The demo: prepare data, distil, sample, evaluate, and write a page of results."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.runs.errors import InputError, UsageError, WriteError
from flashdmd_cli.runs.files import plain, write_text_atomically
from flashdmd_cli.runs.folder import claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import FileRecord, Manifest, parent_record, read_manifest, write_manifest
from flashdmd_cli.runs.nearest import unknown
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.workflows.demo.forecast import expect
from flashdmd_cli.workflows.demo.page import demo_page
from flashdmd_cli.workflows.demo.rows import (
    NUM_SHOWN,
    REAL,
    ROWS,
    Stages,
    draw_rows,
    kept_pictures,
    measure,
    suite_to_draw,
)
from flashdmd_cli.workflows.distill import distill
from flashdmd_cli.workflows.inputs.sam import find_sam
from flashdmd_cli.workflows.inputs.teachers import find_teacher
from flashdmd_cli.workflows.prepare.world import prepare_shapes
from flashdmd_cli.workflows.recipes import distill_recipe

RECIPES = {"sdxl": "shapes-4step-demo", "sd3": "shapes-sd3-4step"}
"""Family of the teacher -> recipe of the demo."""
NUM_PICTURES = 2000
"""Size of the training data."""
SECONDS = ".seconds"
"""File with the seconds that earlier calls of the same demo took."""
METRICS = ("composition", "frechet", "high_frequency", "coverage", "diversity")
INTRODUCTION = """\
A diffusion model draws a picture in many small steps; each step costs a pass through the network. Distillation trains
a student to draw in four. This demo does it with a small model that comes with the package: a teacher of the same kind
as {family} that draws two coloured shapes on a patterned background. Nothing is downloaded. Ctrl-C saves the state, and
the same command resumes."""
WHY_DATA = """
[1/4] Pictures. The student learns mostly from its teacher; a discriminator also compares it with real pictures, so some
real pictures are needed. They are rendered now, each with its caption."""
WHY_DISTILL = """
[2/4] Distilling. In each iteration the student draws pictures. The teacher gives the direction in which they become
more likely (loss `dm`), a second network learns the distribution of the student's pictures (loss `fake`), and the
discriminator improves the fine details at the last of the four steps (losses `gan` and `discriminator`)."""
WHY_SAMPLE = """
[3/4] Drawing. The student in 4 steps, and its teacher in three ways: 30 steps, 4 steps, and 4 steps with the student's
sampler. All use the same captions, which do not occur in the training data, and the same noise. Some captions are drawn
several times with different noise, to measure how much pictures of one caption differ."""
WHY_EVAL = """
[4/4] Measuring. A small network predicts the shapes, colours and surfaces in each picture, so that every caption can be
checked. Its features are also used to compare the whole set with real pictures."""


def untrained(out: Path) -> bool:
    """Whether the student of a demo has not been trained yet, so that `--iterations` may still be changed."""
    from flashdmd_cli.runs.checkpoint import latest_state, state_folder
    from flashdmd_cli.runs.manifest import MANIFEST

    student = Stages(out).student
    states = student / "state"
    return not (student / MANIFEST).is_file() and latest_state(states) in (None, state_folder(states, 0))


def remember(out: Path, request: dict[str, Any]) -> float:
    """Save the options of this demo; UsageError if the folder contains a demo with other options.

    Returns the seconds spent by earlier calls of the same demo.
    """
    path = out / "request.json"
    if path.is_file():
        saved = {"family": "sdxl", **parse_json(path.read_text(encoding="utf-8"))}
        for key, value in request.items():
            if saved.get(key) != value and not (key == "iterations" and untrained(out)):
                hint = f"choose another --out, or leave --{key} at {saved.get(key)} to resume"
                raise UsageError(f"--{key} {value}: {out} holds a demo with {saved.get(key)}", hint=hint)
    write_text_atomically(path, json.dumps(request) + "\n")
    try:
        return float((out / SECONDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


@releasing()
def demo(
    out: Path | str,
    *,
    family: str = "sdxl",
    seed: int = 0,
    iterations: int | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Prepare data, distil, sample, measure and write a page, all in `out`; returns the contents of `demo.json`.

    `family` is one of `RECIPES`, and `iterations` the number of training iterations (None: the recipe's). The same call
    again resumes, or returns the finished result. Raises `Interrupted` or `StopSignal` if a stop was requested,
    `UsageError` if `out` contains something else.
    """
    reporter = reporter or SilentReporter()
    began = time.monotonic()
    if family not in RECIPES:
        raise unknown("--family", family, RECIPES)
    recipe = distill_recipe(RECIPES[family], iterations=iterations, seed=seed, device=device)
    find_teacher(recipe.teacher, reporter=reporter)
    find_sam(recipe, reporter)
    at = Stages(claim(Path(out), "demo"))
    earlier = remember(at.out, {"family": family, "seed": seed, "iterations": recipe.train.iterations})
    if (at.out / "manifest.json").is_file():
        reporter.say(f"{at.out} contains this demo already; to run it again, choose another --out")
        return read_result(at)
    reporter.say(INTRODUCTION.format(family=family.upper()))
    for line in expect(recipe, at):
        reporter.say(line)
    try:
        rows = run(recipe, seed, at, reporter)
    finally:
        with contextlib.suppress(WriteError):
            write_text_atomically(at.out / SECONDS, str(earlier + time.monotonic() - began))
    finish(recipe, rows, seed, at, earlier + time.monotonic() - began)
    return read_result(at)


def run(recipe: Recipe, seed: int, at: Stages, reporter: Reporter) -> dict[str, Any]:
    """Run all four parts; returns the metrics of every row with their intervals."""
    from flashdmd_cli.evaluation.measuring import Evaluator

    reporter.say(WHY_DATA)
    prepare_shapes(at.data, num=NUM_PICTURES, seed=seed, reporter=reporter)
    reporter.say(WHY_DISTILL)
    distill(recipe, at.data, at.student, reporter=reporter)
    reporter.say(WHY_SAMPLE)
    suite = suite_to_draw()
    evaluator = Evaluator(suite)
    draw_rows(recipe, [row.prompt for row in suite.rows], seed, at, reporter)
    reporter.say(WHY_EVAL)
    return {row: measure(row, evaluator, suite, at) for row in (*ROWS, REAL)}


def read_result(at: Stages) -> dict[str, Any]:
    """The contents of `demo.json` of a finished demo."""
    try:
        return parse_json((at.out / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--out {at.out}: demo.json cannot be read: {error}", hint="choose another --out") from None


def finish(recipe: Recipe, rows: dict[str, Any], seed: int, at: Stages, seconds: float) -> None:
    """Write the page, the result document and the manifest, in this order."""
    from flashdmd_cli.core.pictures import as_float
    from flashdmd_cli.evaluation.page import write_page
    from flashdmd_cli.runs.tracking import read_metrics

    captions = [row.prompt for row in suite_to_draw().rows[:NUM_SHOWN]]
    page, path = at.out / "page.html", at.out / "manifest.json"
    shown = {row: as_float(kept_pictures(row, at)[:NUM_SHOWN]) for row in ROWS}
    write_page(page, demo_page(recipe, rows, shown, captions, read_metrics(at.student), seconds))
    document = {row: {name: rows[row][name] for name in METRICS} for row in ROWS}
    whole = {**document, "seconds": round(seconds, 1), "page": str(page), "manifest": str(path)}
    write_text_atomically(at.out / "demo.json", json.dumps(plain(whole), indent=2) + "\n")
    student = read_manifest(at.student)
    files = [page, at.out / "demo.json", *map(at.metrics, (*ROWS, REAL)), *map(at.pictures, ROWS)]
    write_manifest(
        at.out,
        Manifest(
            kind="demo",
            family=recipe.family,
            grid=student.grid,
            teacher=student.teacher,
            parents=[parent_record(at.student, at.out)],
            files=[FileRecord(path=file.relative_to(at.out).as_posix()) for file in files],
            recipe=recipe.model_dump(mode="json"),
            data=student.data,
            seed=seed,
            wall_seconds=seconds,
            license=student.license,
        ),
    )
