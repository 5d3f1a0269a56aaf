"""The second phase of an evaluation: pictures are measured by the metrics of a suite, and the values computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import write_text_atomically
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.reporter import Reporter, wrapped
from flashdmd_cli.runs.workers import run_tasks
from flashdmd_cli.workflows.inputs.families import drawing_place
from flashdmd_cli.workflows.picking import Picked, Request

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.gathering import Scored
    from flashdmd_cli.evaluation.measuring import Measured
    from flashdmd_cli.evaluation.metrics.metric import Metric, Row
    from flashdmd_cli.evaluation.suites.suite import Suite

MEASURED, SAMPLES = "measured", "samples.jsonl"


def score(
    picked: Picked, request: Request, folder: Path, seed: int, num_processes: int, reporter: Reporter
) -> tuple[Measured, dict[str, Any]]:
    """Measure the pictures, of which those that were measured before are not measured again; the values, and the part
    of `results.json` about them. Writes `samples.jsonl` as it goes."""
    from flashdmd_cli.evaluation.collection import left_out_of
    from flashdmd_cli.evaluation.gathering import why_not
    from flashdmd_cli.evaluation.measuring import Measured, values_of
    from flashdmd_cli.evaluation.results import metric_table, picture_facts, warnings_of

    suite, device = picked.suite, drawing_place(request.device).device
    refuse_processes(num_processes, device)
    reporter.phase(f"measuring {len(suite.rows)} pictures", "picture")
    metrics = list(suite.metrics)
    at = folder / MEASURED, request, num_processes, reporter
    scored = score_files(metrics, suite.rows, picked.paths, *at, folder / SAMPLES, seed, picked.names)
    skipped = dict(suite.skipped)
    skipped |= {metric.name: why for metric in metrics if (why := why_not(metric, scored))}
    metrics = [metric for metric in metrics if metric.name not in skipped]
    real: dict[str, Tensor] = {}
    references: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    if metrics:
        real, references = real_numbers(suite, metrics, request, num_processes, reporter)
        counts = {name: len(numbers) for name, numbers in real.items()}
        skipped |= {each.name: why for each in metrics if (why := why_not(each, scored, counts.get(each.name)))}
        metrics = [metric for metric in metrics if metric.name not in skipped]
    if not metrics:
        reason = next((each.reason for each in scored.looks if each.reason), None)
        reason = reason or "; ".join(f"{name}: {why}" for name, why in skipped.items()) or "none was taken by a metric"
        raise InputError(f"--images: none of {len(suite.rows)} pictures could be measured: {reason}")
    prompts = {name: [suite.rows[i].prompt_id for i in found] for name, found in scored.positions.items()}
    values = values_of(metrics, scored.numbers, real, prompts)
    facts = picture_facts(scored.looks, picked.names, suite.rows)
    if picked.collection is not None:
        facts["left_out"] |= left_out_of(picked.collection, picked.folder)
    warnings = warnings_of(facts, metrics, scored, picked.names, counts)
    for line in [*warnings, *(f"{name}: not measured: {why}" for name, why in skipped.items())]:
        reporter.say(wrapped(line))
    counting = sum(row.counts and not each.reason for row, each in zip(suite.rows, scored.looks, strict=True))
    document = {
        "metrics": metric_table(metrics, values, scored, references),
        "skipped": skipped,
        "pictures": facts,
        "num_pictures": counting,
        "warnings": warnings,
    }
    return Measured(values, counting), document


def refuse_processes(num_processes: int, device: str) -> None:
    """UsageError for several processes on one accelerator."""
    if num_processes > 1 and device != "cpu":
        raise UsageError(
            f"--nproc {num_processes}: metrics run on {device}, in one process",
            hint="leave it out, or give --device cpu",
        )


def score_files(
    metrics: Sequence[Metric],
    rows: Sequence[Row],
    paths: Sequence[Path | None],
    store: Path,
    request: Request,
    num_processes: int,
    reporter: Reporter,
    samples: Path | None = None,
    seed: int = 0,
    names: Sequence[str | None] = (),
) -> Scored:
    """Measure files chunk by chunk into `store`; returns what was measured."""
    import torch

    from flashdmd_cli.evaluation.gathering import gather
    from flashdmd_cli.evaluation.scoring import (
        CHUNK,
        ScoreJob,
        chunk_path,
        num_chunks,
        read_chunk,
        remake,
        sample_lines,
    )
    from flashdmd_cli.evaluation.suites.spec import WORLD_METRICS
    from flashdmd_cli.shapes.world import IMAGE_SIZE

    if samples is not None:
        write_text_atomically(samples, "")
    wanted = [(metric.name, metric.options.model_dump()) for metric in metrics]
    chunks = num_chunks(rows)
    processes = min(num_processes, max(1, chunks))
    device = drawing_place(request.device).device
    load = (
        (lambda: metrics) if processes == 1 else partial(remake, wanted, request.weights_dir, device, request.backend)
    )
    side = IMAGE_SIZE if any(metric.name in WORLD_METRICS for metric in metrics) else None
    job = ScoreJob(load, rows, paths, store, torch.get_num_threads(), names, samples, seed, side)
    done = 0
    reporter.progress(0, len(rows))

    def tick(num: int) -> None:
        nonlocal done
        done += num
        reporter.progress(done, len(rows))

    run_tasks(job, range(chunks), processes, tick)
    if samples is not None:  # in the order of the suite
        lines: list[str] = []
        for number in range(chunks):
            part = slice(number * CHUNK, (number + 1) * CHUNK)
            chunk = read_chunk(chunk_path(store, number))
            assert chunk is not None
            lines += sample_lines(metrics, rows[part], names[part], chunk, seed)
        write_text_atomically(samples, "".join(lines))
    return gather(metrics, rows, store)


def real_numbers(
    suite: Suite, metrics: Sequence[Metric], request: Request, num_processes: int, reporter: Reporter
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """What the metrics that compare find in the real pictures, and of files their number and hash, by metric.

    What is measured of a folder is kept under ./runs.
    """
    from flashdmd_cli.evaluation.intake import picture_files
    from flashdmd_cli.evaluation.measuring import Evaluator
    from flashdmd_cli.evaluation.metrics.metric import Row

    comparing = [metric for metric in metrics if metric.compares]
    if not comparing:
        return {}, {}
    if suite.reference_folder is None:
        real = Evaluator(suite).real
        return {metric.name: real.of(metric) for metric in comparing}, {}
    if not suite.reference_folder.is_dir():
        raise InputError(f"--references {suite.reference_folder}: no such folder", hint="a folder of real pictures")
    paths: list[Path | None] = list(
        picture_files(suite.reference_folder)
        if suite.reference_names is None
        else (suite.reference_folder / name for name in suite.reference_names)
    )
    rows = [Row(i, "", prompt_id=str(i)) for i in range(len(paths))]
    reporter.phase(f"measuring {len(rows)} real pictures of {suite.reference_folder}", "picture")
    store = RUNS / f"references-{suite.name}"
    scored = score_files(comparing, rows, paths, store, request, num_processes, reporter)
    if bad := next((each for each in zip(paths, scored.looks, strict=True) if each[1].reason), None):
        raise InputError(f"--references: {bad[0]}: {bad[1].reason}", hint="the real pictures must be whole")
    for name, dropped in scored.dropped.items():
        for why, positions in dropped.items():
            shown = ", ".join(str(paths[i]) for i in positions[:5])
            reporter.say(f"{name}: {len(positions)} real pictures left out, {why}: {shown}")
    digest = scored.references_sha256
    facts = {name: {"num": len(numbers), "sha256": digest} for name, numbers in scored.numbers.items()}
    return scored.numbers, facts
