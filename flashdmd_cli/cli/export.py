"""`flashdmd export`: a student in a form that other programs read."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Out, Quiet, Yes
from flashdmd_cli.cli.output import command
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS, claim, find_run

FORMATS = ("diffusers",)


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
    """Write a student as a stock pipeline folder.

    Drawing with it needs diffusers only.
    """
    with command(as_json, quiet, debug) as output:
        if form not in FORMATS:
            raise UsageError(f"--format {form}: unknown", hint=f"one of {', '.join(FORMATS)}")
        from flashdmd_cli.cli.drawing import student_drawer
        from flashdmd_cli.cli.training_run import saving
        from flashdmd_cli.export.diffusers import export_diffusers
        from flashdmd_cli.runs.manifest import Manifest, parent_record, read_manifest, write_manifest

        began = time.monotonic()
        checkpoint = find_run(source)
        if source is None:
            output.say(f"from {checkpoint}")
        drawer, made = student_drawer(checkpoint), read_manifest(checkpoint)
        folder = claim(out or RUNS / f"export-{checkpoint.name}", "export", yes, resumes=False)
        with saving(folder):
            export_diffusers(drawer.family, drawer.net, drawer.steps, folder)
        write_manifest(
            folder,
            Manifest(
                kind="export",
                family=made.family,
                grid=made.grid,
                step=made.step,
                images_seen=made.images_seen,
                updates=made.updates,
                teacher=made.teacher,
                parents=[parent_record(checkpoint, folder)],
                weights=made.weights,
                recipe=made.recipe,
                data=made.data,
                seed=made.seed,
                wall_seconds=time.monotonic() - began,
                license=made.license,
            ),
        )
        document = {"out": folder, "manifest": folder / "manifest.json", "format": form, "steps": drawer.steps}
        how = f'StableDiffusionXLPipeline.from_pretrained("{folder}")'
        use = f"num_inference_steps={drawer.steps}, guidance_scale=1"
        output.result(document, f"{folder}: {how}, then {use}", str(folder))
