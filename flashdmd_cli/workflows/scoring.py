"""The second phase of an evaluation: which pictures are measured by which metrics, and the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import write_text_atomically
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.runs.workers import run_tasks
from flashdmd_cli.workflows.inputs.families import drawing_place

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.collection import Collection
    from flashdmd_cli.evaluation.measuring import Measured
    from flashdmd_cli.evaluation.metrics.instruments import Instruments
    from flashdmd_cli.evaluation.metrics.metric import Metric, Row
    from flashdmd_cli.evaluation.suites.suite import Suite

SUITE = "shapes1k"
PLAIN_SUITE = "coco10k"
"""Whose metrics are measured on pictures of no suite."""
MEASURED, SAMPLES = "measured", "samples.jsonl"


@dataclass(frozen=True)
class Request:
    """What is to be drawn and measured."""

    suite: str | None
    images: Path | None
    prompts: Path | None
    limit: int | None
    seeds: int
    metrics: Sequence[str] | None
    weights_dir: Path | None
    references: Path | None
    device: str | None
    measures: bool = True


@dataclass(frozen=True)
class Picked:
    """A suite, and the file of each of its rows."""

    suite: Suite
    paths: Sequence[Path | None] = ()
    collection: Collection | None = None
    """Where the pictures were there already."""

    def drawn(self, folder: Path) -> Picked:
        """With the files that were drawn."""
        from flashdmd_cli.evaluation.folder import picture_path

        return replace(self, paths=[picture_path(folder, row.index) for row in self.suite.rows])


def pick(request: Request, reporter: Reporter) -> Picked:
    """The suite that is asked for, or one made of pictures or prompts; raises what `read_suite` raises."""
    from flashdmd_cli.evaluation.metrics.instruments import Instruments
    from flashdmd_cli.evaluation.suites.spec import read_suite

    device = drawing_place(request.device).device
    instruments = Instruments(request.weights_dir, device, reporter)
    if request.images is None and request.prompts is None:
        return Picked(
            read_suite(
                request.suite or SUITE,
                request.limit,
                instruments,
                seeds=request.seeds,
                only=request.metrics,
                references=request.references,
            )
        )
    if request.suite is not None and request.images is None:
        raise UsageError("--prompts: the suite has its prompts", hint="leave --suite or --prompts out")
    if request.images is None:
        return Picked(suite_of_prompts(request, instruments))
    return picked_images(request, instruments)


def picked_images(request: Request, instruments: Instruments) -> Picked:
    """Pictures that are there already, with their prompts; those of a suite, if one is named."""
    from flashdmd_cli.evaluation.collection import read_collection
    from flashdmd_cli.evaluation.suites.prompts import Prompt
    from flashdmd_cli.evaluation.suites.spec import read_suite

    assert request.images is not None
    if request.suite is None:
        found = cut(read_collection(request.images, request.prompts), request.limit)
        name = request.images.resolve().name
        suite = plain_suite(name, found.rows, found.sha256, request, instruments)
        return Picked(suite, found.paths, found)
    chosen = read_suite(request.suite, request.limit, instruments, only=request.metrics, references=request.references)
    texts = {row.prompt_id: row.prompt for row in chosen.rows}
    prompts = [Prompt(name, text, {}, number, True) for number, (name, text) in enumerate(texts.items(), start=1)]
    found = read_collection(request.images, request.prompts, prompts)
    for row in found.rows:
        if texts.get(row.prompt_id) != row.prompt:
            raise InputError(
                f"--images {request.images}: the prompt {row.prompt_id} is not that of the suite {chosen.name}",
                hint="the ids of the pictures' prompts must be those of the suite; or leave --suite out",
            )
    absent = [name for name in texts if name not in {row.prompt_id for row in found.rows}]
    rows, paths = list(found.rows), list(found.paths)
    for name in absent:
        rows.append(chosen.rows[0].__class__(len(rows), texts[name], prompt_id=name))
        paths.append(None)
    return Picked(replace(chosen, rows=rows), paths, found)


def cut(found: Collection, limit: int | None) -> Collection:
    """The first prompts alone."""
    if limit is None:
        return found
    if not 1 <= limit <= len(found.rows):
        raise UsageError(f"--limit {limit}: there are {len(found.rows)} pictures")
    return replace(found, rows=found.rows[:limit], paths=found.paths[:limit])


def suite_of_prompts(request: Request, instruments: Instruments) -> Suite:
    """The prompts of a file as a suite of its name; UsageError for an entry that is no prompt."""
    import hashlib
    import json

    from flashdmd_cli.evaluation.suites.prompts import read_prompt_file, refuse_twice
    from flashdmd_cli.evaluation.suites.spec import rows_of

    assert request.prompts is not None
    prompts, refused = read_prompt_file(request.prompts, "--prompts")
    if refused:
        raise InputError(f"--prompts {refused[0].source}: {refused[0].reason}", hint="mend the line")
    refuse_twice(prompts, f"--prompts {request.prompts}")
    prompts = prompts[: request.limit]
    if not prompts:
        raise InputError(f"--prompts {request.prompts}: holds no prompt", hint="a prompt on each line, or JSONL")
    digest = hashlib.sha256(json.dumps([(each.id, each.text) for each in prompts]).encode()).hexdigest()
    return plain_suite(request.prompts.stem, rows_of(prompts, None, request.seeds), digest, request, instruments)


def plain_suite(name: str, rows: Sequence[Row], digest: str, request: Request, instruments: Instruments) -> Suite:
    """A suite of any prompts, with the metrics that are asked for, else with those of COCO prompts."""
    from flashdmd_cli.evaluation.suites.spec import FOLDER, make_metrics, read_spec
    from flashdmd_cli.evaluation.suites.suite import PromptSuite

    metrics: list[Metric] = []
    skipped: dict[str, str] = {}
    if request.measures:
        spec = read_spec(FOLDER / f"{PLAIN_SUITE}.yaml", "--metrics")
        metrics, skipped = make_metrics(spec, instruments, "--metrics", request.metrics, request.references is not None)
        refuse_world(metrics, rows)
        for metric in list(metrics):
            if request.metrics is None and not any(metric.takes(row) for row in rows):
                skipped[metric.name] = "needs several pictures of a prompt"
                metrics.remove(metric)
    return PromptSuite(name, 1, rows, metrics, digest, skipped, None, request.references)


def refuse_world(metrics: Sequence[Metric], rows: Sequence[Row]) -> None:
    """UsageError for a metric of the embedded world where a prompt is none of its captions."""
    from flashdmd_cli.evaluation.suites.spec import WORLD_METRICS
    from flashdmd_cli.shapes.captions import parse

    own = [metric.name for metric in metrics if metric.name in WORLD_METRICS]
    for row in rows if own else ():
        try:
            parse(row.prompt)
        except ValueError:
            raise UsageError(
                f"--metrics {own[0]}: is for the embedded world, and the prompt {row.prompt_id} is none of its captions"
            ) from None


def score(
    picked: Picked, request: Request, folder: Path, seed: int, num_processes: int, reporter: Reporter
) -> tuple[Measured, dict[str, Any]]:
    """Measure the pictures, of which those that were measured before are not measured again; the values, and the part
    of `results.json` about them. Writes `samples.jsonl` as it goes."""
    from flashdmd_cli.evaluation.collection import left_out_of
    from flashdmd_cli.evaluation.measuring import Measured, values_of
    from flashdmd_cli.evaluation.results import metric_table, picture_facts, warnings_of

    suite, device = picked.suite, drawing_place(request.device).device
    refuse_processes(num_processes, device)
    reporter.phase(f"measuring {len(suite.rows)} pictures", "picture")
    metrics = list(suite.metrics)
    scored = score_files(
        metrics, suite.rows, picked.paths, folder / MEASURED, request, num_processes, reporter, folder / SAMPLES, seed
    )
    skipped = dict(suite.skipped)
    for metric in list(metrics):
        if not len(scored.numbers[metric.name]):
            skipped[metric.name] = "no picture that it could measure"
            metrics.remove(metric)
    if not metrics:
        reason = next((each.reason for each in scored.looks if each.reason), "none was taken by a metric")
        raise InputError(f"--images: none of {len(suite.rows)} pictures could be measured: {reason}")
    real = real_numbers(suite, metrics, request, num_processes, reporter)
    values = values_of(metrics, scored.numbers, real)
    facts = picture_facts(scored.looks, picked.paths, suite.rows)
    if picked.collection is not None:
        facts["left_out"] |= left_out_of(picked.collection)
    warnings = warnings_of(facts, metrics, scored)
    for line in [*warnings, *(f"{name}: not measured: {why}" for name, why in skipped.items())]:
        reporter.say(line)
    counting = sum(row.counts and not each.reason for row, each in zip(suite.rows, scored.looks, strict=True))
    document = {
        "metrics": metric_table(metrics, values, scored),
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
) -> Any:
    """Measure files chunk by chunk into `store`; returns the `Scored`."""
    import torch

    from flashdmd_cli.evaluation.scoring import (
        CHUNK,
        ScoreJob,
        chunk_path,
        gather,
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
    load = (lambda: metrics) if processes == 1 else partial(remake, wanted, request.weights_dir, device)
    side = IMAGE_SIZE if any(metric.name in WORLD_METRICS for metric in metrics) else None
    job = ScoreJob(load, rows, paths, store, torch.get_num_threads(), samples, seed, side)
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
            lines += sample_lines(metrics, rows[part], paths[part], chunk, seed)
        write_text_atomically(samples, "".join(lines))
    return gather(metrics, rows, store)


def real_numbers(
    suite: Suite, metrics: Sequence[Metric], request: Request, num_processes: int, reporter: Reporter
) -> dict[str, Tensor]:
    """What the metrics that compare find in the real pictures; of a folder it is kept under ./runs."""
    from flashdmd_cli.evaluation.intake import picture_files
    from flashdmd_cli.evaluation.measuring import Evaluator
    from flashdmd_cli.evaluation.metrics.metric import Row

    comparing = [metric for metric in metrics if metric.compares]
    if not comparing:
        return {}
    if suite.reference_folder is None:
        real = Evaluator(suite).real
        return {metric.name: real.of(metric) for metric in comparing}
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
    return scored.numbers
