"""`flashdmd demo`: stage 1 on the embedded world from data to evaluation, explained, with a page of results."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, Out, Quiet, Seed
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.reporter import duration


def demo(
    out: Out = None,
    family: Annotated[str, typer.Option(help="Kind of the embedded teacher: sdxl or sd3.")] = "sdxl",
    seed: Seed = 0,
    iterations: Annotated[
        int | None, typer.Option(help="Number of training iterations (default: the recipe's).", show_default=False)
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Stage 1 of the method on the small embedded world, in minutes.

    Prepares data, distils, draws, measures, and writes a page. The same command again resumes.
    """
    with command(as_json, quiet, debug, resumes=True) as output, Progress(output) as observer:
        from flashdmd_cli.workflows.demo import demo as run_demo

        document = run_demo(
            out or RUNS / ("demo" if family == "sdxl" else f"demo-{family}"),
            family=family,
            seed=seed,
            iterations=iterations,
            device=device,
            reporter=observer,
        )
        output.result(document, table(document), document["page"])


def table(document: dict[str, Any]) -> list[str]:
    """The result as text: the metrics of each sampler in a line, then the path of the page."""
    from flashdmd_cli.workflows.demo.rows import ROWS
    from flashdmd_cli.workflows.demo.run import METRICS

    width = max(map(len, ROWS))
    lines = [" " * width + "".join(f"{name:>16}" for name in METRICS)]
    lines += [f"{row:<{width}}" + "".join(f"{document[row][name]:>16.3f}" for name in METRICS) for row in ROWS]
    return [*lines, f"done in {duration(document['seconds'])}; open {document['page']}"]
