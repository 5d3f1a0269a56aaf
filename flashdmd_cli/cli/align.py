"""`flashdmd align`: a distilled student learns preferences while its distillation goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashdmd_cli.cli.distill import finish, print_recipe
from flashdmd_cli.cli.kinds import is_shapes_student
from flashdmd_cli.cli.options import AsJson, Debug, Device, Out, Quiet
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS, find_run

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe import Recipe

FIXED = ("family", "teacher", "grid.steps")
"""Keys that a student brings along."""


def default_recipe(stage1: Recipe, student: Path) -> str:
    """The recipe that fits a distilled student, whose network is in the folder `student`, when none is named."""
    if is_shapes_student(student):
        return "align/shapes"
    if stage1.model.form == "lora":
        return "align/sdxl-lora"
    return "align/sdxl-8step" if stage1.grid.steps == 8 else "align/sdxl"


def resolve(stage1: Recipe, student: Path, recipe: str | None, sets: list[str], flags: dict[str, Any]) -> Recipe:
    """Defaults < the student's own recipe < the alignment's < --set < flags; UsageError for another student's."""
    from flashdmd_cli.cli.run_folder import flat
    from flashdmd_cli.runs.recipe import load_recipe

    name = recipe or default_recipe(stage1, student)
    resolved = load_recipe(name, sets, flags, stage1)
    if resolved.align is None:
        raise UsageError(f"--recipe {name}: has no table `align`", hint="`flashdmd recipes list` shows align/...")
    before, now = (flat(each.model_dump(mode="json")) for each in (stage1, resolved))
    for key in FIXED:
        if before[key] != now[key]:
            raise UsageError(
                f"{key}: is {now[key]}, but the student was distilled with {before[key]}", hint="leave it out"
            )
    return resolved


def align(
    source: Annotated[
        str | None,
        typer.Option("--from", help="Checkpoint of `distill` (default: the newest in ./runs).", show_default=False),
    ] = None,
    rl_ratio: Annotated[
        int | None,
        typer.Option(
            help="Preference steps per student update of stage 1; the fake score learns at each.", show_default=False
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
    recipe: Annotated[
        str | None, typer.Option(help="Name or YAML file; see `flashdmd recipes list`.", show_default=False)
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, `align.beta=100`; may be repeated.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="How long to train.", show_default=False)] = None,
    seed: Annotated[
        int | None, typer.Option(help="All randomness is a function of this number.", show_default=False)
    ] = None,
    stop_on_collapse: Annotated[
        bool, typer.Option("--stop-on-collapse", help="End with exit code 4 when the probe sees a collapse.")
    ] = False,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the grid; no work.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Align a distilled student with preferences while its distillation goes on. The same command again resumes.

    What is not given is the recipe's; `--dry-run` shows it. `--out` is runs/RECIPE by default.
    """
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.cli.checkpoints import data_of, stage1_checkpoint

        checkpoint = stage1_checkpoint(find_run(source, "distill"))
        if source is None:
            output.say(f"from {checkpoint.folder}")
        flags = {
            "align.rl_ratio": rl_ratio,
            "align.reward": reward,
            "train.iterations": iterations,
            "train.seed": seed,
            "model.device": device,
            "probe.stop_on_collapse": stop_on_collapse or None,
        }
        resolved = resolve(checkpoint.recipe, checkpoint.folder / "student", recipe, sets or [], flags)
        if dry_run:
            print_recipe(resolved, output)
            return
        from flashdmd_cli.cli.align_run import run_align

        shards = data_of(checkpoint) if data is None else find_run(str(data), "data", flag="--data")
        if data is None:
            output.say(f"data: {shards}")
        with Progress(output) as observer:
            folder = run_align(resolved, checkpoint, shards, out or RUNS / resolved.name, observer)
        finish(folder, output)
