"""`flashdmd distill`: a teacher becomes a student of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashdmd_cli.cli.kinds import is_shapes
from flashdmd_cli.cli.options import AsJson, Debug, Device, Out, Quiet, TeacherConfig, Vae
from flashdmd_cli.cli.output import Output, Progress, command
from flashdmd_cli.cli.teachers import Parts, absolute, find_source
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS, find_run

if TYPE_CHECKING:
    from flashdmd_cli.core.grid import Grid
    from flashdmd_cli.runs.recipe import Recipe


def default_recipe(teacher: str | Path | None, steps: int | None) -> str:
    """The recipe that fits a teacher and a number of steps when none is named."""
    if teacher is not None and is_shapes(teacher):
        return "shapes-4step"
    return "sdxl-8step" if steps == 8 else "sdxl-4step"


def resolve(
    recipe: str | None,
    sets: list[str],
    teacher: str | None = None,
    steps: int | None = None,
    ttur: int | None = None,
    iterations: int | None = None,
    seed: int | None = None,
    parts: Parts | None = None,
    device: str | None = None,
) -> Recipe:
    """Defaults < recipe < --set < flags."""
    from flashdmd_cli.runs.recipe import load_recipe

    flags: dict[str, Any] = {
        "teacher": teacher,
        "grid.steps": steps,
        "fake.ttur": ttur,
        "train.iterations": iterations,
        "train.seed": seed,
        "model.vae": absolute(parts.vae) if parts else None,
        "model.teacher_config": absolute(parts.teacher_config) if parts else None,
        "model.device": device,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    return load_recipe(recipe or default_recipe(teacher, steps), sets, given)


def grid_of(recipe: Recipe) -> Grid:
    """The timesteps a recipe trains on."""
    from flashdmd_cli.core.grid import vp_grid

    return vp_grid(recipe.grid.steps)


def print_recipe(recipe: Recipe, output: Output) -> None:
    """The resolved recipe as YAML, and the grid as a comment, so that what is printed is a recipe file again."""
    from flashdmd_cli.runs.recipe import dump_recipe

    timesteps = grid_of(recipe).timesteps
    grid = " ".join(map(str, timesteps))
    document = {"recipe": recipe.model_dump(mode="json"), "grid": timesteps}
    output.result(document, [dump_recipe(recipe).rstrip(), f"# grid: {grid}"], recipe.name)


def distill(
    teacher: Annotated[
        str | None,
        typer.Option(
            help="`sdxl`, `shapes-sdxl`, a hub id (owner/name[@revision]), or a pipeline folder or file.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the student: 1, 2, 4 or 8.", show_default=False)] = None,
    ttur: Annotated[int | None, typer.Option(help="Fake-score updates per student update.", show_default=False)] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of prepare-data (default: the newest in ./runs).", show_default=False)
    ] = None,
    out: Out = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name or YAML file; see `flashdmd recipes list`.", show_default=False)
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, `gan.weight=0.5`; may be repeated.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="How long to train.", show_default=False)] = None,
    seed: Annotated[
        int | None, typer.Option(help="All randomness is a function of this number.", show_default=False)
    ] = None,
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the grid; no work.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil a teacher into a student of a few steps. The same command again resumes.

    What is not given is the recipe's; `--dry-run` shows it. `--out` is runs/RECIPE by default.
    """
    with command(as_json, quiet, debug) as output:
        parts = Parts(vae, teacher_config)
        resolved = resolve(recipe, sets or [], teacher, steps, ttur, iterations, seed, parts, device)
        if dry_run:
            print_recipe(resolved, output)
            return
        if resolved.align is not None:
            raise UsageError(
                f"--recipe {resolved.name}: aligns a student", hint=f"flashdmd align --from CKPT --recipe {recipe}"
            )
        from flashdmd_cli.cli.distill_run import run_distill
        from flashdmd_cli.cli.sam_source import find_sam

        shards = None if data is None else find_run(str(data), "data", flag="--data")  # before anything is downloaded
        find_source(resolved.teacher, resolved.model)
        find_sam(resolved)
        shards = shards or find_run(None, "data", flag="--data")
        if data is None:
            output.say(f"data: {shards}")
        with Progress(output) as observer:
            folder = run_distill(resolved, shards, out or RUNS / resolved.name, observer)
        finish(folder, output)


def finish(folder: Path, output: Output) -> None:
    """Say where the student is and what to do with it."""
    from flashdmd_cli.runs.manifest import read_manifest

    manifest = read_manifest(folder)
    document = {
        "out": folder,
        "manifest": folder / "manifest.json",
        "iterations": manifest.step,
        "images_seen": manifest.images_seen,
        "updates": manifest.updates,
        "seconds": manifest.wall_seconds,
        "warnings": manifest.warnings,
    }
    # The suites that `eval` draws are the embedded world's.
    embedded = manifest.teacher is not None and is_shapes(manifest.teacher.id)
    following = f"flashdmd eval --from {folder}" if embedded else f'flashdmd sample --from {folder} --prompt "..."'
    lines = [*(f"warning: {text}" for text in manifest.warnings), f"{folder}: done (next: {following})"]
    output.result(document, lines, str(folder))
