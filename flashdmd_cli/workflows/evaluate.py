"""An evaluation on disk: draw a suite's captions, measure the pictures, write the figures."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import plain, write_text_atomically
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import MANIFEST
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.workflows.inputs.drawers import load_drawer
from flashdmd_cli.workflows.inputs.kinds import is_shapes
from flashdmd_cli.workflows.inputs.teachers import Parts
from flashdmd_cli.workflows.sample import write_result

if TYPE_CHECKING:
    from flashdmd_cli.evaluation.suites import Metrics, Reference

METRICS = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured, and where it wrote it."""

    out: Path
    name: str
    """Of what was measured: the student's folder, or teacher, sampler and steps."""
    metrics: Metrics
    document: dict[str, Any]
    """The contents of `metrics.json`."""


@releasing()
def evaluate(
    source: str | Path | None = None,
    out: Path | str | None = None,
    *,
    suite: str = "shapes1k",
    limit: int | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    vae: str | None = None,
    teacher_config: str | None = None,
    seed: int = 0,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Draw the first `limit` captions of `suite` (None: all) with a student or a teacher, and measure the pictures.

    `source` is the folder of a student, an exported pipeline, or a teacher as `--teacher` names one (None: the newest
    student under ./runs). Writes `metrics.json` and the manifest into `out` (None: ./runs/eval-SUITE-NAME).

    Raises `UsageError` for an option that `source` or `suite` does not take or an `out` that holds something else,
    `InputError` for what cannot be read.
    """
    from flashdmd_cli.evaluation import suites
    from flashdmd_cli.evaluation.report import report

    reporter = reporter or SilentReporter()
    reference = load_reference(suite, limit)
    began = time.monotonic()
    drawer = load_drawer(source, sampler, steps, guidance, Parts(vae, teacher_config), device, reporter)
    if not is_shapes(drawer.family.source):
        raise UsageError(
            f"--suite {suite}: is for the embedded world, and {drawer.name} draws another",
            hint="flashdmd sample draws any prompts",
        )
    folder = claim(Path(out) if out is not None else RUNS / f"eval-{suite}-{drawer.name}", "eval")
    captions = reference.suite.all_captions
    reporter.phase(f"drawing {len(captions)} pictures with {drawer.name}, {drawer.steps} steps", "picture")
    pictures = drawer.draw(captions, seed, reporter)
    reporter.phase("measuring")
    metrics = suites.evaluate(pictures, reference)
    facts = {"suite": suite, "limit": limit, **drawer.facts()}
    document = plain(report({drawer.name: metrics}, **facts, seed=seed, out=folder, manifest=folder / MANIFEST))
    (folder / MANIFEST).unlink(missing_ok=True)  # of an earlier result, which stays until there is another
    write_text_atomically(folder / METRICS, json.dumps(document, indent=2) + "\n")
    write_result(folder, "eval", drawer, [folder / METRICS], seed, facts, time.monotonic() - began)
    return Evaluation(folder, drawer.name, metrics, document)


def load_reference(suite: str, limit: int | None) -> Reference:
    """A suite's captions with the real pictures that drawn ones are measured against."""
    from flashdmd_cli.evaluation.suites import SUITES, Reference
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.shapes.inspector import load_inspector

    if suite not in SUITES:
        raise UsageError(f"--suite {suite}: not in this version", hint=f"there is {', '.join(SUITES)}")
    try:
        captions = SUITES[suite](limit)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        inspector = load_inspector(asset("inspector"))
    except FileNotFoundError as error:
        raise InputError(f"--suite {suite}: {error}") from None
    return Reference(captions, inspector)
