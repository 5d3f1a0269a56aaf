"""`flashdmd demo`: the whole of stage 1 on the embedded world, told to a newcomer, ending in a page."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, Out, Quiet, Seed
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.reporter import duration


def demo(
    out: Out = None,
    seed: Seed = 0,
    iterations: Annotated[
        int | None, typer.Option(help="Length of the training (default: the recipe's).", show_default=False)
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The whole method on a small world, in minutes.

    Prepares data, distils, draws, measures, and writes a page. The same command again resumes.
    """
    with command(as_json, quiet, debug, resumes=True) as output, Progress(output) as observer:
        from flashdmd_cli.workflows.demo import demo as run_demo

        document = run_demo(out or RUNS / "demo", seed=seed, iterations=iterations, device=device, reporter=observer)
        output.result(document, told(document), document["page"])


def told(document: dict[str, Any]) -> list[str]:
    """The result for a person: a line per sampler, then the page."""
    from flashdmd_cli.workflows.demo.rows import ROWS
    from flashdmd_cli.workflows.demo.run import FIGURES

    width = max(map(len, ROWS))
    lines = [" " * width + "".join(f"{name:>16}" for name in FIGURES)]
    lines += [f"{row:<{width}}" + "".join(f"{document[row][name]:>16.3f}" for name in FIGURES) for row in ROWS]
    return [*lines, f"done in {duration(document['seconds'])}; open {document['page']}"]
