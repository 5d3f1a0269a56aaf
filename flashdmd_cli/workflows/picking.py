"""What an evaluation is of: a suite, a file of prompts, or pictures that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.families import drawing_place

if TYPE_CHECKING:
    from flashdmd_cli.evaluation.collection import Collection
    from flashdmd_cli.evaluation.metrics.instruments import Instruments
    from flashdmd_cli.evaluation.metrics.metric import Backend, Metric, Row
    from flashdmd_cli.evaluation.suites.suite import Suite

SUITE = "shapes1k"
PLAIN_SUITE = "coco10k"
"""Whose metrics are measured on pictures of no suite."""


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
    backend: Backend = "inprocess"


@dataclass(frozen=True)
class Picked:
    """A suite, and the file of each of its rows."""

    suite: Suite
    paths: Sequence[Path | None] = ()
    folder: Path = Path()
    """Of the pictures; they are named by their paths below it."""
    collection: Collection | None = None
    """Where the pictures were there already."""

    @property
    def names(self) -> list[str | None]:
        """Of the files, for people."""
        return [None if path is None else name_below(path, self.folder) for path in self.paths]

    def drawn(self, folder: Path) -> Picked:
        """With the files that were drawn."""
        from flashdmd_cli.evaluation.folder import picture_path

        return replace(self, folder=folder, paths=[picture_path(folder, row.index) for row in self.suite.rows])


def name_below(path: Path, folder: Path) -> str:
    """A file's path below a folder, or its name if it lies elsewhere."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.name


def pick(request: Request, reporter: Reporter) -> Picked:
    """The requested suite, or one made of pictures or prompts. Raises the errors of `read_suite`."""
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
                measures=request.measures,
                backend=request.backend,
            )
        )
    if request.images is None:
        return Picked(suite_of_prompts(request, instruments))
    return picked_images(request, instruments, reporter)


def picked_images(request: Request, instruments: Instruments, reporter: Reporter) -> Picked:
    """Pictures that are there already, with their prompts; those of a suite, if one is named."""
    from flashdmd_cli.evaluation.collection import read_collection
    from flashdmd_cli.evaluation.suites.names import suite_path
    from flashdmd_cli.evaluation.suites.spec import read_prompts, read_spec, read_suite

    assert request.images is not None
    if request.suite is None:
        found = cut(read_collection(request.images, request.prompts), request.limit)
        say_order(found, request.images, reporter)
        name = request.images.resolve().name
        suite = plain_suite(name, found.rows, found.sha256, request, instruments)
        return Picked(suite, found.paths, request.images, found)
    chosen = read_suite(
        request.suite,
        request.limit,
        instruments,
        only=request.metrics,
        references=request.references,
        backend=request.backend,
    )
    texts = {row.prompt_id: row.prompt for row in chosen.rows}
    # With the columns of the suite's file, which may name the pictures.
    path, option = suite_path(request.suite), f"--suite {request.suite}"
    prompts = read_prompts(read_spec(path, option), path.parent, option)[0][: request.limit]
    found = read_collection(request.images, request.prompts, prompts)
    say_order(found, request.images, reporter)
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
    return Picked(replace(chosen, rows=rows), paths, request.images, found)


def say_order(found: Collection, folder: Path, reporter: Reporter) -> None:
    """Say where nothing but the order of the files decides which prompt each picture belongs to."""
    if found.matched == "order":
        reporter.say(f"--images {folder}: the prompts have no ids; the n-th picture by name belongs to the n-th prompt")


def cut(found: Collection, limit: int | None) -> Collection:
    """The first prompts alone."""
    if limit is None:
        return found
    if not 1 <= limit <= len(found.rows):
        raise UsageError(f"--limit {limit}: there are {len(found.rows)} pictures")
    return replace(found, rows=found.rows[:limit], paths=found.paths[:limit])


def suite_of_prompts(request: Request, instruments: Instruments) -> Suite:
    """The prompts of a file as a suite of its name; UsageError for an entry that is no prompt."""
    from flashdmd_cli.evaluation.suites.prompts import prompts_digest, read_prompt_file, refuse_twice
    from flashdmd_cli.evaluation.suites.spec import rows_of

    assert request.prompts is not None
    prompts, refused = read_prompt_file(request.prompts, "--prompts")
    if refused:
        raise InputError(f"--prompts {refused[0].source}: {refused[0].reason}", hint="mend the line")
    refuse_twice(prompts, f"--prompts {request.prompts}")
    prompts = prompts[: request.limit]
    if not prompts:
        raise InputError(f"--prompts {request.prompts}: holds no prompt", hint="a prompt on each line, or JSONL")
    digest = prompts_digest([(each.id, each.text) for each in prompts])
    return plain_suite(request.prompts.stem, rows_of(prompts, None, request.seeds), digest, request, instruments)


def plain_suite(name: str, rows: Sequence[Row], digest: str, request: Request, instruments: Instruments) -> Suite:
    """A suite of any prompts, with the requested metrics, else with those for COCO prompts."""
    from flashdmd_cli.evaluation.suites.names import FOLDER
    from flashdmd_cli.evaluation.suites.spec import make_metrics, read_spec, refuse_world
    from flashdmd_cli.evaluation.suites.suite import PromptSuite

    metrics: list[Metric] = []
    skipped: dict[str, str] = {}
    if request.measures:
        spec = read_spec(FOLDER / f"{PLAIN_SUITE}.yaml", "--metrics")
        real = request.references is not None
        metrics, skipped = make_metrics(spec, instruments, "--metrics", request.metrics, real, request.backend)
        refuse_world(metrics, rows)
        for metric in list(metrics):
            if request.metrics is None and not any(metric.takes(row) for row in rows):
                skipped[metric.name] = "needs several pictures of a prompt"
                metrics.remove(metric)
    return PromptSuite(name, 1, rows, metrics, digest, skipped, None, request.references)
