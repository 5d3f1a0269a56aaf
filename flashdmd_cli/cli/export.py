"""`flashdmd export`: a student in a form that other programs read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, From, Out, Quiet, Yes
from flashdmd_cli.cli.output import command
from flashdmd_cli.cli.sources import RUNS, claim, find_run, find_teacher
from flashdmd_cli.runs.errors import InputError, UsageError

FORMATS = ("diffusers",)


def export(
    source: From = None,
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
        from flashdmd_cli.runs.manifest import Manifest, parent_record, read_manifest, write_manifest
        from flashdmd_cli.runs.recipe import Recipe

        began = time.monotonic()
        checkpoint = find_run(source)
        made = read_manifest(checkpoint)
        if made.kind != "distill":
            raise InputError(
                f"--from {checkpoint}: is a {made.kind} folder", hint="flashdmd distill writes a checkpoint"
            )
        if source is None:
            output.say(f"from {checkpoint}")
        recipe = Recipe.model_validate(made.recipe)
        teacher = find_teacher(recipe.teacher)
        folder = claim(out or RUNS / f"export-{checkpoint.name}", "export", yes, resumes=False)
        write_pipeline(checkpoint, teacher, recipe.grid.steps, folder)
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
        document = {"out": folder, "manifest": folder / "manifest.json", "format": form, "steps": recipe.grid.steps}
        how = f'StableDiffusionXLPipeline.from_pretrained("{folder}")'
        use = f"num_inference_steps={recipe.grid.steps}, guidance_scale=1"
        output.result(document, f"{folder}: {how}, then {use}", str(folder))


def write_pipeline(checkpoint: Path, teacher: Path, steps: int, out: Path) -> None:
    """The pipeline folder; InputError when weights are missing or damaged."""
    from flashdmd_cli.export.diffusers import export_diffusers

    try:
        export_diffusers(checkpoint / "student", teacher, steps, out)
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputError(f"--from {checkpoint}: cannot be read: {str(error).splitlines()[0]}") from error
