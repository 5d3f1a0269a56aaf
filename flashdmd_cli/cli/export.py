"""`flashdmd export`: converts a student to a format that other programs read."""

from __future__ import annotations

from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Out, Quiet, Yes
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.export import FORMATS


def export(
    source: Annotated[
        str | None,
        typer.Option("--from", help="A distilled checkpoint (default: the newest under ./runs).", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(FORMATS)}.")] = "diffusers",
    out: Out = None,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a student as a stock pipeline folder, which can be used with diffusers alone."""
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        from flashdmd_cli.export.diffusers import absent_parts
        from flashdmd_cli.workflows.export import export as run_export

        made = run_export(source, out, form=form, replace=yes, reporter=observer)
        folder, steps = made.out, made.steps
        document = {"out": folder, "manifest": folder / "manifest.json", "format": form, "steps": steps}
        how = f'DiffusionPipeline.from_pretrained("{folder}"{absent_parts(folder)})'
        use = f"num_inference_steps={steps}, guidance_scale=1"
        output.result(document, f"{folder}: {how}, then {use}", str(folder))
