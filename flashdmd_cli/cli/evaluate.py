"""`flashdmd eval`: draw a suite's prompts and measure the pictures; `eval compare` puts results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, From, Model, Out, Quiet, Seed, TeacherConfig, Vae
from flashdmd_cli.cli.output import Output, Progress, command, to_stdout
from flashdmd_cli.runs.errors import ThresholdError, UsageError
from flashdmd_cli.runs.reporter import counted

if TYPE_CHECKING:
    from flashdmd_cli.workflows.evaluate import Evaluation

eval_app = typer.Typer(help="Measure a student, a teacher, or pictures.", rich_markup_mode=None)


@eval_app.callback(invoke_without_command=True)
def evaluate_command(
    context: typer.Context,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Name (coco10k, coco-mini, shapes1k, shapes-val) or YAML file (default: shapes1k).", show_default=False
        ),
    ] = None,
    source: From = None,
    model: Model = None,
    images: Annotated[
        Path | None, typer.Option(help="Measure the pictures of this folder; draws none.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="What --images show, or what to draw: text, JSONL, CSV.", show_default=False),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Names with commas between (default: the suite's).", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", show_default=False)] = None,
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 1,
    sampler: Annotated[
        str | None, typer.Option(help="Of a teacher: ddim or stochastic (default: ddim).", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps (student: its grid; teacher: 30).", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Of a teacher (default: its recipe's).", show_default=False)
    ] = None,
    generate_only: Annotated[bool, typer.Option("--generate-only", help="Draw, and do not measure.")] = False,
    layout: Annotated[
        str | None,
        typer.Option(help="Also write them as geneval, dpg or t2i-compbench reads them.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Pictures drawn at a time (default: by their size).", show_default=False)
    ] = None,
    nproc: Annotated[int, typer.Option("--nproc", help="Processes, on a CPU.")] = 1,
    weights_dir: Annotated[
        Path | None, typer.Option(help="Local copies of the metrics' weights.", show_default=False)
    ] = None,
    backend: Annotated[
        Literal["inprocess", "upstream"],
        typer.Option(help="inprocess, or upstream: ImageReward and HPSv2 by their authors' packages."),
    ] = "inprocess",
    references: Annotated[
        Path | None, typer.Option(help="Folder of real pictures, for FID and the like.", show_default=False)
    ] = None,
    fail_below: Annotated[
        list[str] | None, typer.Option(help="METRIC=NUMBER: exit 5 when the value is lower; may be repeated.")
    ] = None,
    fail_above: Annotated[
        list[str] | None, typer.Option(help="METRIC=NUMBER: exit 5 when the value is higher; may be repeated.")
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
    """Measure a student or a teacher on a suite, or existing pictures. The same command again resumes.

    The default is the newest checkpoint under ./runs. `eval compare A B` compares results, `eval read LAYOUT FILE`
    reads those of GenEval, DPG-Bench and T2I-CompBench.
    """
    if context.invoked_subcommand is not None:
        return
    with command(as_json, quiet, debug, resumes=True) as output, Progress(output) as observer:
        lowest = parse_thresholds(fail_below or [], "--fail-below")
        highest = parse_thresholds(fail_above or [], "--fail-above")
        names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics is not None else None
        if names == []:
            raise UsageError("--metrics: names none", hint="for example --metrics clip,pickscore")
        from flashdmd_cli.workflows.evaluate import evaluate

        result = evaluate(
            source, out, suite=suite, limit=limit, seeds=seeds, sampler=sampler, steps=steps, guidance=guidance,
            vae=vae, teacher_config=teacher_config, metrics=names, weights_dir=weights_dir, references=references,
            images=images, prompts=prompts, layout=layout, generate_only=generate_only, batch=batch,
            num_processes=nproc, fail_below=lowest, fail_above=highest, seed=seed, device=device, reporter=observer,
            model=model, backend=backend,
        )  # fmt: skip
        show(result, output)
        if result.missed:
            raise ThresholdError("; ".join(result.missed))


@eval_app.command("compare")
def compare_command(
    results: Annotated[
        list[Path], typer.Argument(help="Folders that eval wrote; the first is what others are compared with.")
    ],
    format_: Annotated[str, typer.Option("--format", help="markdown, csv or latex.")] = "markdown",
    metrics: Annotated[
        str | None, typer.Option(help="Names with commas between (default: all in common).", show_default=False)
    ] = None,
    paper: Annotated[
        bool | None,
        typer.Option(
            "--paper/--no-paper", help="Published rows beside ours (default: for coco10k).", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for report.html and the table; or a file for one of them (.html, .md).",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Results of one suite side by side: values, paired differences with 95% intervals, win rates."""
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.workflows.compare import compare

        names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics is not None else None
        document, text = compare(results, format=format_, metrics=names, paper=paper, out=out)
        if format_ != "markdown":
            for line in document["warnings"]:
                output.say(line)
        output.result(document, text if out is None else f"written to {out}", str(out or ""))


@eval_app.command("read")
def read_command(
    layout: Annotated[str, typer.Argument(help="geneval, dpg or t2i-compbench.")],
    file: Annotated[Path, typer.Argument(help="The file of results that the benchmark wrote.")],
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read the results of a benchmark that ran in an environment of its own, for `eval compare`."""
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.workflows.compare import read_benchmark

        document = read_benchmark(layout, file, out)
        rows = document["metrics"][layout]
        parts = [f"  {name:<20} {part['value']:.4f}" for name, part in rows.get("parts", {}).items()]
        low, high = rows["low"], rows["high"]  # unbounded with a single prompt
        interval = f" ({low:.4f} to {high:.4f})" if low is not None and high is not None else ""
        total = f"{layout}: {rows['value']:.4f}{interval}, {counted(rows['n'], 'picture')}"
        output.result(document, [total, *parts], str(document["out"]))


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
    if result.metrics is None:
        output.result(result.document, f"{result.pictures}: {len(result.suite.rows)} pictures", str(result.pictures))
        return
    from rich.console import Console

    from flashdmd_cli.evaluation.report import parts_tables, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=80)
    rows = {result.name: result.metrics}
    shown = [metric for metric in result.suite.metrics if metric.name in result.metrics.values_by_name]
    with to_stdout():
        title = f"{result.suite.name}, {result.metrics.num_pictures} pictures"
        console.print(table(rows, shown, title))
        for each in parts_tables(rows):
            console.print(each)
        console.print(f"written to {result.out}", soft_wrap=True)
