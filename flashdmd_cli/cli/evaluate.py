"""`flashdmd eval`: draw a suite's captions and measure the pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashdmd_cli.cli.kinds import is_shapes
from flashdmd_cli.cli.options import AsJson, Debug, Device, From, Out, Quiet, Seed, TeacherConfig, Vae
from flashdmd_cli.cli.output import Output, Progress, command, plain, to_stdout
from flashdmd_cli.cli.teachers import Parts
from flashdmd_cli.runs.errors import InputError, ThresholdError, UsageError
from flashdmd_cli.runs.folder import RUNS, claim

if TYPE_CHECKING:
    from flashdmd_cli.evaluation.suites import Metrics, Reference


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


def load_reference(suite: str, limit: int | None) -> Reference:
    """A suite's captions with the real pictures that drawn ones are measured against."""
    from flashdmd_cli.evaluation.suites import SUITES, Reference
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.shapes.inspector import load_inspector

    if suite not in SUITES:
        raise UsageError(f"--suite {suite}: not in this version", hint=f"there is {', '.join(SUITES)}")
    try:
        captions = SUITES[suite](limit)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        inspector = load_inspector(asset("inspector"))
    except FileNotFoundError as error:
        raise InputError(f"--suite {suite}: {error}") from None
    return Reference(captions, inspector)


def show(rows: dict[str, Metrics], title: str, document: dict[str, Any], names: str, output: Output) -> None:
    """The table on stdout, or its JSON form."""
    if output.as_json or output.quiet:
        output.result(document, "", names)
        return
    from rich.console import Console

    from flashdmd_cli.evaluation.report import attribute_table, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    with to_stdout():
        console.print(table(rows, title))
        console.print(attribute_table(rows))
        console.print(f"written to {names}", soft_wrap=True)


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
        from flashdmd_cli.cli.drawing import load_drawer

        reference = load_reference(suite, limit)
        began = time.monotonic()
        drawer = load_drawer(source, sampler, steps, guidance, Parts(vae, teacher_config), device)
        if source is None:
            output.say(f"from {drawer.folder}")
        output.say(str(drawer.place))
        if not is_shapes(drawer.family.source):
            raise UsageError(
                f"--suite {suite}: is for the embedded world, and {drawer.name} draws another",
                hint="flashdmd sample draws any prompts",
            )
        folder = claim(out or RUNS / f"eval-{suite}-{drawer.name}", "eval")
        from flashdmd_cli.cli.sample import write_result
        from flashdmd_cli.evaluation.report import missed, report
        from flashdmd_cli.evaluation.suites import evaluate
        from flashdmd_cli.runs.files import write_text_atomically
        from flashdmd_cli.runs.manifest import MANIFEST

        captions = reference.suite.all_captions
        observer.phase(f"drawing {len(captions)} pictures with {drawer.name}, {drawer.steps} steps", "picture")
        pictures = drawer.draw(captions, seed, observer)
        observer.phase("measuring")
        rows = {drawer.name: evaluate(pictures, reference)}
        figures = folder / "metrics.json"
        facts = {"suite": suite, "limit": limit, **drawer.facts()}
        document = plain(report(rows, **facts, seed=seed, out=folder, manifest=folder / "manifest.json"))
        (folder / MANIFEST).unlink(missing_ok=True)  # of an earlier result, which stays until there is another
        write_text_atomically(figures, json.dumps(document, indent=2) + "\n")
        write_result(folder, "eval", drawer, [figures], seed, facts, time.monotonic() - began)
        show(rows, f"{suite}, {rows[drawer.name].num_pictures} captions", document, str(folder), output)
        if failed := missed(rows[drawer.name], lowest, highest):
            raise ThresholdError("; ".join(failed))
