"""Checks of the options of `eval` that need neither torch nor a download, so that a mistake is reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flashdmd_cli.evaluation.names import LAYOUTS, check_metric_names
from flashdmd_cli.evaluation.suites.names import PREPARED, suite_path
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.nearest import unknown


def check_options(
    images: object, source: object, generate_only: bool, seeds: int, batch: int | None, nproc: int, layout: str | None
) -> None:
    """UsageError for options that exclude each other, and for numbers below one."""
    if images is not None and source is not None:
        raise UsageError(
            "--images: are pictures that are there already, and --from draws some", hint="give one of them"
        )
    if images is not None and (generate_only or layout):
        flag = "--generate-only" if generate_only else "--layout"
        raise UsageError(f"{flag}: nothing is drawn with --images", hint="leave one of them out")
    if layout is not None and layout not in LAYOUTS:
        raise unknown("--layout", layout, LAYOUTS)
    for flag, number in (("--seeds", seeds), ("--batch", batch), ("--nproc", nproc)):
        if number is not None and number < 1:
            raise UsageError(f"{flag} {number}: must be at least 1")


def check_backend(backend: str, generate_only: bool) -> None:
    """UsageError for an unknown backend, and for one that would have nothing to do."""
    if backend not in ("inprocess", "upstream"):
        raise UsageError(f"--backend {backend}: unknown", hint="inprocess or upstream")
    if backend == "upstream" and generate_only:
        raise UsageError("--backend upstream: nothing is measured with --generate-only", hint="leave one of them out")


def check_names(
    suite: str | None,
    metrics: Sequence[str] | None,
    lowest: Mapping[str, float],
    highest: Mapping[str, float],
    generate_only: bool,
) -> None:
    """UsageError for an unknown suite or metric, also in a threshold, and for thresholds where nothing is measured."""
    if suite is not None and suite not in PREPARED:
        suite_path(suite)
    check_metric_names(metrics or ())
    for flag, thresholds in (("--fail-below", lowest), ("--fail-above", highest)):
        if thresholds and generate_only:
            raise UsageError(f"{flag}: nothing is measured with --generate-only", hint="leave one of them out")
        check_metric_names(list(thresholds), flag)


def check_paths(images: object, prompts: object, references: object) -> None:
    """InputError for a folder or file that is not there."""
    for flag, given in (("--images", images), ("--prompts", prompts), ("--references", references)):
        if given is None:
            continue
        path = expanded(str(given))
        if not path.exists():
            raise InputError(f"{flag} {given}: no such {'file' if flag == '--prompts' else 'folder'}")
