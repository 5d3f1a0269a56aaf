"""Suites as YAML files: their fields, and the one function that reads them, shipped or not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Direction, Metric, Row
from flashdmd_cli.evaluation.metrics.registry import METRICS
from flashdmd_cli.evaluation.suites.shapes import ShapesSuite
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.tables import Config, Count
from flashdmd_cli.shapes.captions import parse

FOLDER = Path(__file__).parent
MIN_PROMPTS = 2
"""A covariance needs two pictures."""


class PromptFile(Config):
    """The prompts of a suite."""

    file: str
    """A text file with a prompt on each line, UTF-8, beside the YAML file."""
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


class SuiteSpec(Config):
    """A suite as its file describes it."""

    name: str
    """In results and in the names of folders."""
    version: Count
    """Goes up with every change after which the same model gets other figures."""
    world: Literal["shapes"]
    """`shapes`: captions of the embedded world, whose real pictures are rendered."""
    prompts: PromptFile
    """What to draw."""
    groups: Groups | None = None
    """Several pictures of one prompt."""
    reference_seed: int
    """Draws the real pictures that drawn ones are compared with."""
    metrics: Annotated[list[Measure], Field(min_length=1)]
    """What is measured, in the order of a report."""


def list_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_suite(name: str, limit: int | None = None, instruments: Instruments | None = None) -> ShapesSuite:
    """A shipped suite by its name, or one by the path of its YAML file; `limit` takes the first prompts alone.

    Raises `UsageError` for an unknown name, key or metric, `InputError` for what cannot be read or is missing, each in
    one line that begins with `--suite` (or `--limit`).
    """
    said = f"--suite {name}"
    path = suite_path(name)
    spec = read_spec(path, said)
    try:
        metrics = make_metrics(spec, instruments or Instruments(), said)
    except FileNotFoundError as error:
        raise InputError(f"{said}: {error}") from None
    prompts = read_prompts(spec, path.parent, said)
    if limit is not None and not MIN_PROMPTS <= limit <= len(prompts):
        raise UsageError(f"--limit {limit}: {spec.name} takes from {MIN_PROMPTS} to {len(prompts)} captions")
    rows = rows_of(prompts[:limit], spec.groups)
    for metric in metrics:
        if not any(metric.takes(row) for row in rows):
            raise UsageError(f"{said}: {metric.name}: has nothing to measure", hint="give the suite `groups`")
    return ShapesSuite(spec.name, spec.version, rows, metrics, spec.reference_seed)


def suite_path(name: str) -> Path:
    """The file of a shipped suite, or of one that is named by its path."""
    if name in list_suites():
        return FOLDER / f"{name}.yaml"
    path = expanded(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"--suite {name}: not in this version",
            hint=f"there is {', '.join(list_suites())}; a file of your own is given with its .yaml",
        )
    if not path.is_file():
        raise InputError(f"--suite {name}: no such file", hint=f"there is {', '.join(list_suites())}")
    return path


def read_spec(path: Path, said: str) -> SuiteSpec:
    """The checked contents of a suite's file."""
    try:
        return SuiteSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{said}: cannot be read: {error}", hint="a suite is a YAML text file") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{said}: not YAML: {' '.join(str(error).split())}", hint="check the quotes") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{said}: {key}: no such key", hint=f"compare with {FOLDER / 'shapes1k.yaml'}") from None
        told = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise UsageError(f"{said}: {key + ': ' if key else ''}{told}", hint="mend the file") from None


def make_metrics(spec: SuiteSpec, instruments: Instruments, said: str) -> list[Metric]:
    """The metrics that a suite names; UsageError for one that is unknown, twice there, or not what it was."""
    for i, wanted in enumerate(spec.metrics):
        if wanted.name not in METRICS:
            hint = f"one of {', '.join(METRICS)}"
            raise UsageError(f"{said}: metrics.{i}.name: no metric {wanted.name!r}", hint=hint)
        metric = METRICS[wanted.name]
        for key in ("direction", "version"):
            if (has := getattr(metric, key)) != (asked := getattr(wanted, key)):
                raise UsageError(
                    f"{said}: metrics.{i}.{key}: {wanted.name} is measured with {key} {has} here, not {asked}",
                    hint="change it, and the suite's version, where the figures are to be compared",
                )
        if wanted.name in [each.name for each in spec.metrics[:i]]:
            raise UsageError(f"{said}: metrics.{i}.name: {wanted.name} is there twice", hint="name it once")
    return [METRICS[wanted.name](instruments) for wanted in spec.metrics]


def read_prompts(spec: SuiteSpec, folder: Path, said: str) -> list[str]:
    """The prompts that a suite names."""
    path = folder / spec.prompts.file
    try:
        content = path.read_bytes()
        prompts = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{said}: prompts.file: cannot read {path}: {error}", hint="a text file, a prompt a line"
        ) from None
    if spec.prompts.sha256 not in (None, found := hashlib.sha256(content).hexdigest()):
        raise InputError(
            f"{said}: prompts.sha256: {path} is not the file that the suite was written for (its hash is {found})",
            hint="restore the file, or give the suite another version and this hash",
        )
    for number, prompt in enumerate(prompts, start=1):
        try:
            parse(prompt)
        except ValueError as error:
            raise InputError(f"{said}: prompts.file: {path}, line {number}: {error}", hint="mend the line") from None
    prompts = prompts[: spec.prompts.num]
    if len(prompts) < MIN_PROMPTS:
        raise InputError(f"{said}: prompts.file: {path} has {len(prompts)} prompts", hint=f"{MIN_PROMPTS} at least")
    return prompts


def rows_of(prompts: list[str], groups: Groups | None) -> list[Row]:
    """What to draw, in its order."""
    if groups is None:
        plain, repeated = prompts, []
    elif groups.extra:
        plain, repeated = prompts, prompts[: groups.num]
    else:
        plain, repeated = prompts[: -groups.num], prompts[-groups.num :]
    rows = [Row(i, prompt) for i, prompt in enumerate(plain)]
    for group, prompt in enumerate(repeated):
        for _ in range(groups.size if groups else 0):
            rows.append(Row(len(rows), prompt, group, counts=groups is not None and not groups.extra))
    return rows
