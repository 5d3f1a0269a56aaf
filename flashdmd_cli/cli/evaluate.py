"""`flashdmd eval`: draw a suite's captions and measure the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, From, Model, Out, Quiet, Seed, TeacherConfig, Vae
from flashdmd_cli.cli.output import Output, Progress, command, to_stdout
from flashdmd_cli.runs.errors import ThresholdError, UsageError

if TYPE_CHECKING:
    from flashdmd_cli.workflows.evaluate import Evaluation


def evaluate_command(
    suite: Annotated[
        str, typer.Option(help="What to draw and measure: shapes1k, shapes-val to choose settings on, or a YAML file.")
    ] = "shapes1k",
    source: From = None,
    model: Model = None,
    sampler: Annotated[
        str | None, typer.Option(help="Of a teacher: ddim or stochastic (default: ddim).", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps (student: its grid; teacher: 30).", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Of a teacher (default: its recipe's).", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first captions.", show_default=False)] = None,
    fail_below: Annotated[
        list[str] | None, typer.Option(help="METRIC=NUMBER: exit 5 when the figure is lower; may be repeated.")
    ] = None,
    fail_above: Annotated[
        list[str] | None, typer.Option(help="METRIC=NUMBER: exit 5 when the figure is higher; may be repeated.")
    ] = None,
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    seed: Seed = 0,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a student or a teacher on a suite.

    The default is the newest checkpoint under ./runs.
    """
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        lowest = parse_thresholds(fail_below or [], "--fail-below")
        highest = parse_thresholds(fail_above or [], "--fail-above")
        from flashdmd_cli.workflows.evaluate import evaluate

        result = evaluate(
            source,
            out,
            suite=suite,
            limit=limit,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            vae=vae,
            teacher_config=teacher_config,
            fail_below=lowest,
            fail_above=highest,
            seed=seed,
            device=device,
            reporter=observer,
            model=model,
        )
        show(result, output)
        if result.missed:
            raise ThresholdError("; ".join(result.missed))


def parse_thresholds(texts: Sequence[str], flag: str) -> dict[str, float]:
    """`composition=0.9` -> {"composition": 0.9}; UsageError for anything else."""
    thresholds = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            thresholds[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"{flag} {text}: is not METRIC=NUMBER", hint="for example composition=0.9") from None
    return thresholds


def show(result: Evaluation, output: Output) -> None:
    """The table on stdout, or its JSON form."""
    if output.as_json or output.quiet:
        output.result(result.document, "", str(result.out))
        return
    from rich.console import Console

    from flashdmd_cli.evaluation.report import parts_tables, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    rows = {result.name: result.metrics}
    with to_stdout():
        title = f"{result.suite.name}, {result.metrics.num_pictures} captions"
        console.print(table(rows, result.suite.metrics, title))
        for each in parts_tables(rows):
            console.print(each)
        console.print(f"written to {result.out}", soft_wrap=True)
