"""An evaluation on disk, in two phases: draw a suite's prompts to files, and measure files with their prompts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded, plain, write_text_atomically
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import MANIFEST, FileRecord, Manifest, hardware, versions, write_manifest
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.workflows.drawing import PROMPTS, cost, draw_suite
from flashdmd_cli.workflows.eval_options import check_backend, check_names, check_options, check_paths
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.drawers import find_model, load_found
from flashdmd_cli.workflows.inputs.families import drawing_place
from flashdmd_cli.workflows.inputs.suites import find_suite
from flashdmd_cli.workflows.inputs.teachers import Parts
from flashdmd_cli.workflows.picking import Picked, Request, pick
from flashdmd_cli.workflows.sample import prompt_warnings, write_result
from flashdmd_cli.workflows.scoring import score

if TYPE_CHECKING:
    from flashdmd_cli.evaluation.measuring import Measured
    from flashdmd_cli.evaluation.metrics.metric import Backend
    from flashdmd_cli.evaluation.suites.suite import Suite

RESULTS, SAMPLES, REPORT, PICTURES = "results.json", "samples.jsonl", "report.html", "pictures"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured, and where it wrote it."""

    out: Path
    name: str
    """Of what was measured: the student's folder, or teacher, sampler and steps; or the folder of the pictures."""
    suite: Suite
    metrics: Measured | None
    """The values; None if the pictures were only drawn."""
    pictures: Path
    """The folder of the pictures: `00000.png` ... in the order of its `prompts.jsonl`, or that of `images`."""
    document: dict[str, Any]
    """The contents of `results.json`."""
    missed: list[str] = field(default_factory=list)
    """Which thresholds were missed, a line each."""


@releasing()
def evaluate(
    source: str | Path | None = None,
    out: Path | str | None = None,
    *,
    suite: str | None = None,
    limit: int | None = None,
    seeds: int = 1,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    vae: str | None = None,
    teacher_config: str | None = None,
    metrics: Sequence[str] | None = None,
    weights_dir: Path | str | None = None,
    references: Path | str | None = None,
    images: Path | str | None = None,
    prompts: Path | str | None = None,
    layout: str | None = None,
    generate_only: bool = False,
    batch: int | None = None,
    num_processes: int = 1,
    fail_below: Mapping[str, float] | None = None,
    fail_above: Mapping[str, float] | None = None,
    seed: int = 0,
    device: str | None = None,
    reporter: Reporter | None = None,
    model: str | None = None,
    backend: Backend = "inprocess",
) -> Evaluation:
    """Draw the first `limit` prompts of a suite (None: all) with a student or a teacher, and measure the pictures.

    The same call again resumes an interrupted one: existing pictures and measurements are kept.

    Args:
        source: the folder of a student, an exported pipeline, or a teacher as `--teacher` names one; None: the newest
            student under ./runs.
        model: instead of `source`, the name or YAML file of a preset.
        out: the folder of the result; None: ./runs/eval-SUITE-NAME.
        suite: name of a suite, or path of a YAML file; None: `shapes1k`, or with `images` none.
        seeds: pictures of each prompt; the noise of a picture depends on suite, prompt id and seed alone.
        metrics: names of the metrics to measure; None: those of the suite.
        weights_dir: local copies of the weights of metrics.
        references: folder of real pictures, for metrics that compare with them.
        images: a folder of pictures that are there already; they are measured and none is drawn.
        prompts: a file with what `images` show, or, without `images`, with the prompts to draw.
        layout: also write the pictures as a benchmark wants them: `geneval`, `dpg` or `t2i-compbench`.
        generate_only: draw and do not measure.
        batch: pictures drawn at a time; on a CPU it changes nothing but how often they are written.
        num_processes: processes on this machine, for both phases on a CPU.
        backend: `inprocess`, or `upstream`: values of ImageReward and HPSv2 come from the packages of their authors, in
            an environment that is built on first use.
        fail_below, fail_above: the lowest and highest allowed value by metric; what was missed is in the result.

    Raises:
        UsageError: for an option that `source` or the suite does not take, or an `out` that holds something else.
        InputError: for what cannot be read, and where the weights of one of `metrics` are missing.
    """
    reporter, lowest, highest = reporter or SilentReporter(), dict(fail_below or {}), dict(fail_above or {})
    # Everything that can be checked without torch comes before its import and before any download.
    check_options(images, source or model, generate_only, seeds, batch, num_processes, layout)
    check_backend(backend, generate_only)
    check_names(suite, metrics, lowest, highest, generate_only)
    if suite is not None and prompts is not None and images is None:
        raise UsageError("--prompts: the suite has its prompts", hint="leave --suite or --prompts out")
    check_paths(images, prompts, references)
    find = partial(
        find_model, source, sampler=sampler, steps=steps, guidance=guidance, parts=Parts(vae, teacher_config),
        device=device, reporter=reporter, model=model,
    )  # fmt: skip
    # The newest student is looked for later: the prompts of a suite may be prepared before there is one.
    chosen = find() if images is None and (source, model) != (None, None) else None
    if suite is not None:
        find_suite(suite, reporter)
    from flashdmd_cli.evaluation.report import check_thresholds, missed

    began = time.monotonic()
    request = Request(
        suite=suite,
        images=None if images is None else expanded(images),
        prompts=None if prompts is None else expanded(prompts),
        limit=limit,
        seeds=seeds,
        metrics=metrics,
        weights_dir=None if weights_dir is None else expanded(weights_dir),
        references=None if references is None else expanded(references),
        device=device,
        measures=not generate_only,
        backend=backend,
    )
    picked = pick(request, reporter)
    for name in (*lowest, *highest):
        if name in picked.suite.skipped:
            raise InputError(f"--fail-below {name}: cannot be measured: {picked.suite.skipped[name]}")
    check_thresholds(picked.suite.metrics, lowest, highest)
    if images is not None:
        place = drawing_place(device)
        name = picked.suite.name
        folder = claim(Path(out) if out is not None else RUNS / f"eval-{name}", "eval")
        facts: dict[str, Any] = {"images": str(images), "prompts": None if prompts is None else str(prompts)}
        drawer, pictures = None, Path(images)
    else:
        chosen = chosen or find()
        drawer, load = load_found(chosen, device, reporter), partial(chosen.load, device)
        if picked.suite.world == "shapes" and not drawer.draws_shapes:
            raise UsageError(
                f"--suite {suite or picked.suite.name}: is for the embedded world, and {drawer.name} draws another",
                hint="flashdmd sample draws any prompts",
            )
        for warning in prompt_warnings(drawer, list(dict.fromkeys(row.prompt for row in picked.suite.rows))):
            reporter.say(warning)
        place, name = drawer.place, drawer.name
        folder = claim(Path(out) if out is not None else RUNS / f"eval-{picked.suite.name}-{name}", "eval")
        facts = {**drawer.facts()}
        pictures = draw_suite(picked.suite, drawer, load, folder, seed, batch, num_processes, reporter)
        picked = picked.drawn(pictures)
        if layout is not None:
            from flashdmd_cli.evaluation.layouts import write_layout

            there = [path if path is not None and path.is_file() else None for path in picked.paths]
            write_layout(layout, picked.suite.rows, there, folder / layout, request.prompts)
    drawing_seconds = time.monotonic() - began
    measured = None
    document = {
        "schema": 1,
        "name": name,
        "suite": about(picked, suite, limit, seeds),
        **facts,
        "seed": seed,
        "out": folder,
        "manifest": folder / MANIFEST,
        "pictures_in": pictures,
        "versions": versions(),
        "hardware": hardware(place.device, place.precision),
        "drawing": cost(pictures) if drawer is not None else {},
    }
    if not generate_only:
        measured, found = score(picked, request, folder, seed, num_processes, reporter)
        document |= {"backend": backend} | found
    document["seconds"] = {"generate": drawing_seconds, "score": time.monotonic() - began - drawing_seconds}
    document = plain(document)
    for earlier in (MANIFEST, REPORT):  # an earlier result stays until there is another
        (folder / earlier).unlink(missing_ok=True)
    write_text_atomically(folder / RESULTS, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    files = [folder / RESULTS]
    if measured is not None:
        from flashdmd_cli.evaluation.report_page import write_evaluation_report

        files += [folder / SAMPLES, write_evaluation_report(folder)]
    facts |= {"suite": document["suite"], "limit": limit, "pictures": pictures.name}
    finish(folder, drawer, picked, pictures, files, seed, facts, time.monotonic() - began)
    missing = [] if measured is None else missed(measured, lowest, highest)
    return Evaluation(folder, name, picked.suite, measured, pictures, document, missing)


def about(picked: Picked, suite: str | None, limit: int | None, seeds: int) -> dict[str, Any]:
    """The suite as it is recorded in results."""
    return {
        "name": picked.suite.name,
        "version": picked.suite.version,
        "sha256": picked.suite.sha256,
        "file": suite,
        "prompts": len({row.prompt_id for row in picked.suite.rows}),
        "pictures": len(picked.suite.rows),
        "limit": limit,
        "seeds": seeds,
        "published": picked.suite.published,
    }


def finish(
    folder: Path,
    drawer: Drawer | None,
    picked: Picked,
    pictures: Path,
    files: list[Path],
    seed: int,
    facts: dict[str, Any],
    seconds: float,
) -> None:
    """Write the manifest, and delete the pictures of earlier results."""
    if drawer is None:
        records = [FileRecord(path=path.relative_to(folder).as_posix()) for path in files]
        write_manifest(folder, Manifest(kind="eval", files=records, recipe=facts, seed=seed, wall_seconds=seconds))
        return
    drawn = [path for path in picked.paths if path is not None and path.is_file()]
    write_result(folder, "eval", drawer, [*files, pictures / PROMPTS, *drawn], seed, facts, seconds)
    for other in set((folder / PICTURES).iterdir()) - {pictures}:  # of earlier results
        shutil.rmtree(other, ignore_errors=True)
