"""`flashdmd distill`: distils a teacher into a few-step student (stage 1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.options import (
    AsJson,
    Debug,
    Device,
    DryRun,
    Iterations,
    NumProcesses,
    Out,
    Quiet,
    RecipeName,
    RecipeSeed,
    TeacherConfig,
    Vae,
)
from flashdmd_cli.cli.output import Output, Progress, command
from flashdmd_cli.cli.ranks import run_processes
from flashdmd_cli.families.registry import FAMILIES
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS

if TYPE_CHECKING:
    from flashdmd_cli.runs.manifest import Manifest
    from flashdmd_cli.runs.recipe import Recipe


def distill(
    teacher: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(f'`{name}`' for name in FAMILIES)}, `shapes-sdxl`, `shapes-sd3`, a hub id "
            "(owner/name[@revision]), or a pipeline folder or file.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the student: 1, 2, 4 or 8.", show_default=False)] = None,
    ttur: Annotated[int | None, typer.Option(help="Fake-score updates per student update.", show_default=False)] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of prepare-data (default: the newest in ./runs).", show_default=False)
    ] = None,
    out: Out = None,
    recipe: RecipeName = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, `gan.weight=0.5`; may be repeated.")
    ] = None,
    iterations: Iterations = None,
    seed: RecipeSeed = None,
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    device: Device = None,
    nproc: NumProcesses = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil a teacher into a few-step student. The same command again resumes.

    Options that are not given come from the recipe; `--dry-run` shows it. `--out` is runs/RECIPE by default.
    """
    with command(as_json, quiet, debug, resumes=True, trains=True) as output:
        from flashdmd_cli.workflows.inputs.teachers import check_teacher_name
        from flashdmd_cli.workflows.plan.fitting import distill_recipe_here

        if not dry_run:
            check_teacher_name(teacher)
        resolved = distill_recipe_here(
            recipe,
            sets or [],
            out,
            output.say,
            teacher=teacher,
            steps=steps,
            ttur=ttur,
            iterations=iterations,
            seed=seed,
            vae=vae,
            teacher_config=teacher_config,
            device=device,
        )
        if dry_run:
            print_recipe(resolved, output)
            return
        if resolved.align is not None:
            raise UsageError(
                f"--recipe {resolved.name}: is for alignment", hint=f"flashdmd align --from CKPT --recipe {recipe}"
            )
        from flashdmd_cli.workflows.distill import distill as run_distill

        folder = out or RUNS / resolved.name
        run_processes(nproc, output.world)
        with Progress(output) as observer:
            manifest = run_distill(resolved, data, folder, reporter=observer, world=output.world)
        finish(folder, manifest, output)


def print_recipe(recipe: Recipe, output: Output) -> None:
    """Print the resolved recipe as YAML, with grid and plan as comments, so that the output is a valid recipe file."""
    from flashdmd_cli.cli.plan import shortage, summary
    from flashdmd_cli.families.registry import family_named
    from flashdmd_cli.runs.recipe import dump_recipe
    from flashdmd_cli.workflows.plan.gpus import gpu_named
    from flashdmd_cli.workflows.plan.planning import can_plan, plan

    timesteps = family_named(recipe.family).module.grid(recipe.grid.steps).timesteps
    grid = " ".join(f"{t:g}" for t in timesteps)
    document = {"recipe": recipe.model_dump(mode="json"), "grid": timesteps}
    lines = [dump_recipe(recipe).rstrip(), f"# grid: {grid}"]
    if can_plan(recipe) and not output.quiet:
        found = plan(recipe, gpu_named(None))
        document["plan"] = found.as_dict()
        lines += [f"# {line}" for line in summary(found)]
        if warning := shortage(found):
            output.say(f"warning: {warning}")
    output.result(document, lines, recipe.name)


def finish(folder: Path, manifest: Manifest, output: Output) -> None:
    """Print where the student is and which command to run next."""
    from flashdmd_cli.workflows.inputs.kinds import is_shapes

    document = {
        "out": folder,
        "manifest": folder / "manifest.json",
        "iterations": manifest.step,
        "images_seen": manifest.images_seen,
        "updates": manifest.updates,
        "seconds": manifest.wall_seconds,
        "warnings": manifest.warnings,
    }
    # The default suite of `eval` is the embedded world's.
    embedded = manifest.teacher is not None and is_shapes(manifest.teacher.id)
    following = f"flashdmd eval --from {folder}" if embedded else f'flashdmd sample --from {folder} --prompt "..."'
    lines = [*(f"warning: {text}" for text in manifest.warnings), f"{folder}: done (next: {following})"]
    output.result(document, lines, str(folder))
