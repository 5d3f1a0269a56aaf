"""`flashdmd align`: preference learning of a distilled student, with continued distillation (stage 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashdmd_cli.cli.distill import finish, print_recipe
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
)
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.cli.ranks import run_processes
from flashdmd_cli.runs.folder import RUNS


def align(
    source: Annotated[
        str | None,
        typer.Option("--from", help="Checkpoint of `distill` (default: the newest in ./runs).", show_default=False),
    ] = None,
    rl_ratio: Annotated[
        int | None,
        typer.Option(
            help="Preference steps per student update of stage 1; the fake score is updated in each.",
            show_default=False,
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Latent reward model: `embedded`, `lrm_sdxl`, a hub id, or a folder.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of prepare-data (default: the checkpoint's own).", show_default=False)
    ] = None,
    out: Out = None,
    recipe: RecipeName = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, `align.beta=100`; may be repeated.")
    ] = None,
    iterations: Iterations = None,
    seed: RecipeSeed = None,
    stop_on_collapse: Annotated[
        bool, typer.Option("--stop-on-collapse", help="End with exit code 4 when the probe detects a collapse.")
    ] = False,
    device: Device = None,
    nproc: NumProcesses = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Align a distilled student with preferences while distillation continues. The same command again resumes.

    Options that are not given come from the recipe; `--dry-run` shows it. `--out` is runs/RECIPE by default.
    """
    with command(as_json, quiet, debug, resumes=True, trains=True) as output:
        from flashdmd_cli.runs.results import stage1_checkpoint
        from flashdmd_cli.workflows.inputs.kinds import find_student
        from flashdmd_cli.workflows.recipes import align_recipe

        student = stage1_checkpoint(find_student(source, "distill"))
        if source is None:
            output.say(f"from {student.folder}")
        resolved = align_recipe(
            student,
            recipe,
            sets or [],
            rl_ratio=rl_ratio,
            reward=reward,
            iterations=iterations,
            seed=seed,
            device=device,
            stop_on_collapse=stop_on_collapse,
        )
        if dry_run:
            print_recipe(resolved, output)
            return
        from flashdmd_cli.workflows.align import align as run_align

        folder = out or RUNS / resolved.name
        run_processes(nproc, output.world)
        with Progress(output) as observer:
            manifest = run_align(resolved, student, folder, data=data, reporter=observer, world=output.world)
        finish(folder, manifest, output)
