"""Suites as YAML files: their fields, and the one function that reads them, shipped or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Backend, Direction, Metric, Row
from flashdmd_cli.evaluation.metrics.registry import METRICS, UPSTREAM, metric_class
from flashdmd_cli.evaluation.names import check_metric_names
from flashdmd_cli.evaluation.scorers.weights import WeightsMissing
from flashdmd_cli.evaluation.suites.names import FOLDER, suite_path
from flashdmd_cli.evaluation.suites.prompts import Prompt, read_prompt_file, refuse_twice
from flashdmd_cli.evaluation.suites.shapes import ShapesSuite
from flashdmd_cli.evaluation.suites.suite import PromptSuite
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded, sha256_file
from flashdmd_cli.runs.nearest import nearest
from flashdmd_cli.runs.tables import Config, Count
from flashdmd_cli.runs.yaml_text import parse_yaml
from flashdmd_cli.shapes.captions import parse

MIN_PROMPTS = 2
"""A covariance needs two pictures."""
WORLD_METRICS = ("composition", "exact", "extra_objects", "frechet", "coverage", "pattern_coverage", "diversity")
"""Metrics that see nothing but the embedded world."""
SIZED = ("high_frequency",)
"""Metrics that need real pictures of the size of the drawn ones: measured where a suite or `--metrics` names them."""
COLUMN_OF_FILES = "file_name"
"""Column of a prompt file that names the real picture of each prompt in `references`."""


class PromptFile(Config):
    """The prompts of a suite."""

    file: str
    """Beside the YAML file: a text file with a prompt on each line, whose ids are the line numbers; or JSON, JSON
    lines, CSV, TSV or parquet with columns `prompt` and, if wanted, `id`."""
    sha256: str | None = None
    """Of the file's contents; another file is refused. Without it any is taken."""
    num: Count | None = None
    """Only the first so many."""


class Groups(Config):
    """Several pictures of one prompt, for metrics of diversity."""

    num: Count
    """How many prompts; of a shorter list, all."""
    size: Annotated[int, Field(ge=2)]
    """Pictures of each."""
    extra: bool = True
    """True: the first `num` prompts are drawn again, `size` times, and those pictures serve diversity alone. False: the
    last `num` prompts are drawn `size` times instead of once, and their pictures count for every metric. Few pictures
    are then enough, but intervals take pictures as independent, which those of one prompt are but nearly."""


class Measure(Config):
    """A metric of a suite, with what the suite was written for; a metric that has changed since is refused."""

    name: str
    """As in `evaluation/metrics/registry.py`."""
    direction: Direction
    """`higher` is better, `lower` is better, or `one`: a ratio that should be 1."""
    version: int = 1
    """Version of the metric."""
    options: dict[str, Any] = {}
    """Settings of the metric; what is not set has the value of the published tables."""


class SuiteSpec(Config):
    """A suite as its file describes it."""

    name: str
    """In results and in the names of folders."""
    version: Count
    """Goes up with every change after which the same model gets other values."""
    world: Literal["shapes"] | None = None
    """`shapes`: captions of the embedded world, whose real pictures are rendered. None: any prompts."""
    prompts: PromptFile
    """What to draw."""
    groups: Groups | None = None
    """Several pictures of one prompt."""
    reference_seed: int = 0
    """Draws the real pictures of the embedded world."""
    references: str | None = None
    """Folder of real pictures, for metrics that compare with them; relative to the YAML file."""
    published: bool = False
    """Whether values on this suite may stand beside published ones: `prepare-data` writes it into the suite `coco10k`
    whose draw is that of the published tables."""
    metrics: Annotated[list[Measure] | None, Field(min_length=1)] = None
    """What is measured, in the order of a report. Left out: every metric of pictures of any kind and size."""


def read_suite(
    name: str,
    limit: int | None = None,
    instruments: Instruments | None = None,
    *,
    seeds: int = 1,
    only: Sequence[str] | None = None,
    references: Path | None = None,
    measures: bool = True,
    backend: Backend = "inprocess",
) -> ShapesSuite | PromptSuite:
    """A shipped suite by its name, or one by the path of its YAML file; `limit` takes the first prompts alone.

    `seeds` pictures are drawn for each prompt. `only` are the names of the metrics to measure, by default those of the
    suite; without `measures` there are none, and no weights are needed. `references` is the folder of real pictures, by
    default the suite's. `backend` computes the metrics whose authors have a package.

    Raises `UsageError` for an unknown name, key or metric, `InputError` for what cannot be read or is missing, each in
    one line that begins with `--suite` (or `--limit`, `--metrics`).
    """
    flag = f"--suite {name}"
    path = suite_path(name)
    spec = read_spec(path, flag)
    prompts, prompts_hash = read_prompts(spec, path.parent, flag)
    if limit is not None and not MIN_PROMPTS <= limit <= len(prompts):
        raise UsageError(f"--limit {limit}: {spec.name} takes from {MIN_PROMPTS} to {len(prompts)} captions")
    rows = rows_of(prompts[:limit], spec.groups, seeds)
    if references is None and spec.references is not None:
        references = path.parent / expanded(spec.references)
    real = spec.world is not None or references is not None
    wanted = spec, instruments or Instruments(), flag, only, real, backend
    metrics, skipped = make_metrics(*wanted) if measures else ([], {})
    if spec.world is None:
        refuse_world(metrics, rows)
    for metric in list(metrics):
        if not any(metric.takes(row) for row in rows):
            if only is None and spec.groups is None and spec.world is None:
                skipped[metric.name] = "needs several pictures of a prompt: --seeds 4"
                metrics.remove(metric)
                continue
            raise UsageError(f"{flag}: {metric.name}: has nothing to measure", hint="give the suite `groups`")
    decides = {
        **spec.model_dump(mode="json", exclude={"metrics", "references", "published"}),
        "prompts_sha256": prompts_hash,
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    if spec.world == "shapes":
        return ShapesSuite(spec.name, spec.version, rows, metrics, spec.reference_seed, digest, skipped)
    files = [prompt.columns.get(COLUMN_OF_FILES) for prompt in prompts]
    named = [str(name) for name in files] if references is not None and None not in files else None
    return PromptSuite(spec.name, spec.version, rows, metrics, digest, skipped, None, references, named, spec.published)


def read_spec(path: Path, flag: str) -> SuiteSpec:
    """The checked contents of a suite's file."""
    try:
        return SuiteSpec.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag}: cannot be read: {error}", hint="a suite is a YAML text file") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{flag}: {key}: no such key", hint=f"compare with {FOLDER / 'shapes1k.yaml'}") from None
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise UsageError(f"{flag}: {key + ': ' if key else ''}{message}", hint="mend the file") from None
    except ValueError as error:
        raise UsageError(f"{flag}: not YAML: {error}", hint="check the quotes") from None


def make_metrics(
    spec: SuiteSpec,
    instruments: Instruments,
    flag: str,
    only: Sequence[str] | None = None,
    real: bool = True,
    backend: Backend = "inprocess",
) -> tuple[list[Metric], dict[str, str]]:
    """The metrics that a suite names, or `only` those named; and which cannot be measured here, with the reason.

    `real`: whether there are real pictures to compare with. `backend`: what computes those metrics whose authors have a
    package; with `upstream` there has to be one of them. UsageError for a metric that is unknown, twice there, or
    not what it was; InputError where the weights of one of `only` are missing.
    """
    listed = spec.metrics or [
        Measure(name=each.name, direction=each.direction, version=each.version)
        for each in METRICS.values()
        if each.name not in (*WORLD_METRICS, *SIZED)
    ]
    for i, wanted in enumerate(listed):
        if wanted.name not in METRICS:
            problem = f"{flag}: metrics.{i}.name: no metric {wanted.name!r}{nearest(wanted.name, METRICS)}"
            raise UsageError(problem, hint=f"one of {', '.join(METRICS)}")
        metric = METRICS[wanted.name]
        for key in ("direction", "version"):
            if (has := getattr(metric, key)) != (asked := getattr(wanted, key)):
                raise UsageError(
                    f"{flag}: metrics.{i}.{key}: {wanted.name} is measured with {key} {has} here, not {asked}",
                    hint="change it, and the suite's version, where the values are to be compared",
                )
        if wanted.name in [each.name for each in listed[:i]]:
            raise UsageError(f"{flag}: metrics.{i}.name: {wanted.name} is there twice", hint="name it once")
    options = {wanted.name: wanted.options for wanted in listed}
    if only is not None:
        check_metric_names(only)
    if backend == "upstream" and not any(name in UPSTREAM for name in (options if only is None else only)):
        raise UsageError(
            "--backend upstream: none of these metrics has a package of its authors",
            hint=f"it computes {', '.join(UPSTREAM)}",
        )
    made, skipped = [], dict[str, str]()
    for name in options if only is None else only:
        try:
            if METRICS[name].compares and not real:
                raise WeightsMissing(
                    f"{flag}: {name}: there are no real pictures to compare with", hint="--references DIR names them"
                )
            made.append(metric_class(name, backend)(instruments, options.get(name, {})))
        except WeightsMissing as error:
            if only is not None:
                raise
            why = error.message.removeprefix(f"{flag}: ").removeprefix(f"{name}: ")
            skipped[name] = f"{why} ({error.hint})" if error.hint else why
        except FileNotFoundError as error:
            raise InputError(f"{flag}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, ("options", *first["loc"])))
            raise UsageError(f"{flag}: metrics: {name}: {key}: {first['msg'].lower()}", hint="mend the file") from None
    if not made and skipped:
        raise InputError(
            f"{flag}: none of its metrics can be measured here: {'; '.join(skipped.values())}", hint="see --metrics"
        )
    return made, skipped


def refuse_world(metrics: Sequence[Metric], rows: Sequence[Row]) -> None:
    """UsageError for a metric of the embedded world where a prompt is none of its captions."""
    own = [metric.name for metric in metrics if metric.name in WORLD_METRICS]
    for row in rows if own else ():
        try:
            parse(row.prompt)
        except ValueError:
            raise UsageError(
                f"--metrics {own[0]}: is for the embedded world, and the prompt {row.prompt_id} is none of its captions"
            ) from None


def read_prompts(spec: SuiteSpec, folder: Path, flag: str) -> tuple[list[Prompt], str]:
    """The prompts that a suite names, and the hash of their file."""
    path, option = folder / expanded(spec.prompts.file), f"{flag}: prompts.file"
    prompts, refused = read_prompt_file(path, option)
    if refused:
        raise InputError(f"{option}: {refused[0].source}: {refused[0].reason}", hint="mend the line")
    refuse_twice(prompts, f"{option}: {path}")
    if spec.prompts.sha256 not in (None, found := sha256_file(path)):
        raise InputError(
            f"{flag}: prompts.sha256: {path} is not the file that the suite was written for (its hash is {found})",
            hint="restore the file, or give the suite another version and this hash",
        )
    for prompt in prompts if spec.world == "shapes" else ():
        try:
            parse(prompt.text)
        except ValueError as error:
            raise InputError(f"{option}: {path}, line {prompt.id}: {error}", hint="mend the line") from None
    prompts = prompts[: spec.prompts.num]
    if len(prompts) < MIN_PROMPTS:
        raise InputError(f"{option}: {path} has {len(prompts)} prompts", hint=f"{MIN_PROMPTS} at least")
    return prompts, found


def rows_of(prompts: Sequence[Prompt], groups: Groups | None, seeds: int = 1) -> list[Row]:
    """What to draw, in its order: `seeds` pictures of each prompt, then those of the groups."""
    if groups is None:
        plain, repeated = prompts, prompts[:0]
    elif groups.extra:
        plain, repeated = prompts, prompts[: groups.num]
    else:
        plain, repeated = prompts[: -groups.num], prompts[-groups.num :]
    rows: list[Row] = []
    for number, prompt in enumerate(plain):
        group = number if groups is None and seeds > 1 else None
        rows += [Row(len(rows) + i, prompt.text, group, True, prompt.id, i) for i in range(seeds)]
    for group, prompt in enumerate(repeated):
        extra = groups is not None and groups.extra
        for i in range(groups.size if groups else 0):
            rows.append(Row(len(rows), prompt.text, group, not extra, prompt.id, i + (seeds if extra else 0)))
    return rows
