"""`flashdmd eval`: draw a suite's captions and measure the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, From, Out, Quiet, Seed, TeacherConfig, Vae
from flashdmd_cli.cli.output import Output, Progress, command, to_stdout
from flashdmd_cli.runs.errors import ThresholdError, UsageError

if TYPE_CHECKING:
    from flashdmd_cli.workflows.evaluate import Evaluation


def evaluate_command(
    suite: Annotated[
        str, typer.Option(help="What to draw and measure: shapes1k, or shapes-val to choose settings on.")
    ] = "shapes1k",
    source: From = None,
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
        from flashdmd_cli.evaluation.report import missed
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
            seed=seed,
            device=device,
            reporter=observer,
        )
        show(result, suite, output)
        if failed := missed(result.metrics, lowest, highest):
            raise ThresholdError("; ".join(failed))


def parse_thresholds(texts: Sequence[str], flag: str) -> dict[str, float]:
    """`composition=0.9` -> {"composition": 0.9}; UsageError for what no suite measures, before anything is drawn."""
    from flashdmd_cli.evaluation.report import FIGURES, WRONG_WAY

    thresholds = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            thresholds[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"{flag} {text}: is not METRIC=NUMBER", hint="for example composition=0.9") from None
    for name in thresholds:
        if name not in FIGURES:
            raise UsageError(f"{flag} {name}: no such figure", hint=f"one of {', '.join(FIGURES)}")
        if FIGURES[name].endswith(WRONG_WAY[flag]):
            (other,) = WRONG_WAY.keys() - {flag}
            better = "lower" if flag == "--fail-below" else "higher"
            raise UsageError(f"{flag} {name}: {better} is better", hint=f"{other} {name}=NUMBER")
    return thresholds


def show(result: Evaluation, suite: str, output: Output) -> None:
    """The table on stdout, or its JSON form."""
    if output.as_json or output.quiet:
        output.result(result.document, "", str(result.out))
        return
    from rich.console import Console

    from flashdmd_cli.evaluation.report import attribute_table, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    rows = {result.name: result.metrics}
    with to_stdout():
        console.print(table(rows, f"{suite}, {result.metrics.num_pictures} captions"))
        console.print(attribute_table(rows))
        console.print(f"written to {result.out}", soft_wrap=True)
