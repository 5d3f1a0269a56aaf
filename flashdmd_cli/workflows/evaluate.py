"""An evaluation on disk: draw a suite's prompts to files, measure the files, write the figures."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import plain, write_text_atomically
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import MANIFEST
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.drawers import load_drawer
from flashdmd_cli.workflows.inputs.teachers import Parts
from flashdmd_cli.workflows.sample import write_result

if TYPE_CHECKING:
    from flashdmd_cli.evaluation.measuring import Measured
    from flashdmd_cli.evaluation.suites.suite import Suite

METRICS, PICTURES, PROMPTS = "metrics.json", "pictures", "prompts.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured, and where it wrote it."""

    out: Path
    name: str
    """Of what was measured: the student's folder, or teacher, sampler and steps."""
    suite: Suite
    metrics: Measured
    pictures: Path
    """The folder of the pictures, `00000.png` ... in the order of `prompts.jsonl`."""
    document: dict[str, Any]
    """The contents of `metrics.json`."""
    missed: list[str] = field(default_factory=list)
    """Which thresholds were missed, a line each."""


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
    fail_below: Mapping[str, float] | None = None,
    fail_above: Mapping[str, float] | None = None,
    seed: int = 0,
    device: str | None = None,
    reporter: Reporter | None = None,
    model: str | None = None,
) -> Evaluation:
    """Draw the first `limit` prompts of `suite` (None: all) with a student or a teacher, and measure the pictures.

    `source` is the folder of a student, an exported pipeline, or a teacher as `--teacher` names one (None: the newest
    student under ./runs); `model` is instead the name or YAML file of a preset. `suite` is the name of a shipped suite
    or the path of a YAML file. `fail_below` and `fail_above` are the lowest and highest allowed figures by metric; what
    they say is in the result. Writes the pictures, `metrics.json` and the manifest into `out` (None:
    ./runs/eval-SUITE-NAME). Pictures that are there and that the same drawer drew are not drawn again: a call that was
    interrupted goes on when it is repeated.

    Raises `UsageError` for an option that `source` or `suite` does not take or an `out` that holds something else,
    `InputError` for what cannot be read.
    """
    from flashdmd_cli.evaluation.folder import draw_missing, picture_path, read_pictures
    from flashdmd_cli.evaluation.measuring import Evaluator
    from flashdmd_cli.evaluation.report import check_thresholds, missed, report
    from flashdmd_cli.evaluation.suites.spec import read_suite

    reporter, lowest, highest = reporter or SilentReporter(), dict(fail_below or {}), dict(fail_above or {})
    chosen = read_suite(suite, limit)
    check_thresholds(chosen.metrics, lowest, highest)
    began = time.monotonic()
    drawer = load_drawer(source, sampler, steps, guidance, Parts(vae, teacher_config), device, reporter, model)
    if chosen.world == "shapes" and not drawer.draws_shapes:
        raise UsageError(
            f"--suite {suite}: is for the embedded world, and {drawer.name} draws another",
            hint="flashdmd sample draws any prompts",
        )
    folder = claim(Path(out) if out is not None else RUNS / f"eval-{chosen.name}-{drawer.name}", "eval")
    pictures = begin_pictures(folder, chosen, drawer, seed)
    reporter.phase(f"drawing {len(chosen.rows)} pictures with {drawer.name}, {drawer.steps} steps", "picture")
    draw_missing(partial(drawer.draw_from, seed), chosen.rows, pictures, reporter)
    reporter.phase("measuring")
    measured = Evaluator(chosen).evaluate(read_pictures(pictures, chosen.rows))
    facts = {"suite": suite, "limit": limit, **drawer.facts()}
    document = plain(report({drawer.name: measured}, **facts, seed=seed, out=folder, manifest=folder / MANIFEST))
    (folder / MANIFEST).unlink(missing_ok=True)  # of an earlier result, which stays until there is another
    write_text_atomically(folder / METRICS, json.dumps(document, indent=2) + "\n")
    versions = {metric.name: metric.version for metric in chosen.metrics}
    facts |= {"suite_version": chosen.version, "metric_versions": versions, "pictures": pictures.name}
    files = [folder / METRICS, pictures / PROMPTS, *(picture_path(pictures, row.index) for row in chosen.rows)]
    write_result(folder, "eval", drawer, files, seed, facts, time.monotonic() - began)
    for other in set((folder / PICTURES).iterdir()) - {pictures}:  # of earlier results
        shutil.rmtree(other, ignore_errors=True)
    return Evaluation(folder, drawer.name, chosen, measured, pictures, document, missed(measured, lowest, highest))


def begin_pictures(folder: Path, suite: Suite, drawer: Drawer, seed: int) -> Path:
    """The folder of the pictures of this suite, drawer and seed, named by all that decides them, with their prompts.

    So pictures of another drawer are never taken for these, and those of a result stay until there is another.
    """
    from flashdmd_cli.evaluation.folder import picture_path

    rows = [
        {"file": picture_path(Path(), row.index).name, "prompt": row.prompt, "group": row.group} for row in suite.rows
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    decides = {"seed": seed, **drawer.identity(), "prompts": hashlib.sha256(lines.encode()).hexdigest()}
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    pictures = folder / PICTURES / digest
    if not (pictures / PROMPTS).is_file():
        write_text_atomically(pictures / PROMPTS, lines)
    return pictures
