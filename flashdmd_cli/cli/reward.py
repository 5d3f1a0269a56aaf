"""`flashdmd reward`: trains a latent reward model on preference pairs, or scores pictures with one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, Iterations, NumProcesses, Out, Quiet, RecipeSeed, Seed
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.cli.ranks import run_processes
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.workflows.inputs.kinds import SHAPES

reward_app = typer.Typer(help="Train a latent reward model, or score pictures with one.", no_args_is_help=True,
                         rich_markup_mode=None)  # fmt: skip

Pairs = Annotated[Path, typer.Option("--pairs", help="JSONL or parquet: prompt, image_0, image_1, label (0, 1, 0.5).")]


@reward_app.command("train")
def train(
    pairs: Pairs,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="`sdxl`, `sd3`, `shapes-sdxl`, `shapes-sd3`, a hub id (owner/name[@revision]), or a pipeline folder.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name or YAML file (default: what fits the teacher: reward/sdxl, reward/sd3, reward/shapes, ...).",
            show_default=False,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, `optim.lr=1e-5`; may be repeated.")
    ] = None,
    iterations: Iterations = None,
    seed: RecipeSeed = None,
    device: Device = None,
    nproc: NumProcesses = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a latent reward model on preference pairs. The same command again resumes.

    Options that are not given come from the recipe; `--out` is runs/RECIPE by default.
    """
    with command(as_json, quiet, debug, resumes=True, trains=True) as output:
        from flashdmd_cli.workflows.recipes import reward_recipe

        resolved = reward_recipe(recipe, sets or [], teacher=teacher, iterations=iterations, seed=seed, device=device)
        from flashdmd_cli.workflows.reward import REPORT, train_reward

        folder = out or RUNS / resolved.name
        run_processes(nproc, output.world)
        with Progress(output) as observer:
            train_reward(resolved, pairs, folder, reporter=observer, world=output.world)
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        text = [f"{folder}: done (next: flashdmd align --from CKPT --reward {folder})"]
        text += found_lines(
            report["accuracy"], report.get("decided", report["held_out"]), "held-out pairs with a winner"
        )
        output.result({"out": folder, **report}, text, str(folder))


def found_lines(accuracy: Mapping[str, float], decided: int, what: str) -> list[str]:
    """The fraction of pairs whose winner was predicted, at each noise level, with its 95% (Wilson) interval."""
    from flashdmd_cli.evaluation.metrics.intervals import wilson

    bounds = {t: wilson(round(value * decided), decided) for t, value in accuracy.items()}
    rows = [f"  timestep {t:>4}  {each.value:.3f}  ({each.low:.3f} to {each.high:.3f})" for t, each in bounds.items()]
    return [f"winners found among {decided} {what}:", *rows]


@reward_app.command("score")
def score(
    reward: Annotated[
        str, typer.Option("--reward", help="Latent reward model: `embedded`, `lrm_sdxl`, a hub id, or a folder.")
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs", help="Preference pairs to measure the accuracy on, by noise level.", show_default=False
        ),
    ] = None,
    images: Annotated[list[Path] | None, typer.Option("--image", help="Picture to score; may be repeated.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The prompt that the pictures are scored for.", show_default=False)
    ] = None,
    at_timestep: Annotated[
        int, typer.Option("--at", help="Timestep of the noise that is added to the pictures.", min=0, max=999)
    ] = 1,
    teacher: Annotated[str, typer.Option(help="Model that encodes the pictures to latents.")] = SHAPES,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score pictures for a prompt, or measure how often a reward model predicts the winner of a pair."""
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        if (pairs is None) == (not images):
            raise UsageError("--pairs: give either a file of pairs, or --image and --prompt")
        if images and prompt is None:
            raise UsageError("--prompt: is missing, and pictures are scored for a prompt", hint="give it with --image")
        from flashdmd_cli.workflows.reward import measure_reward, score_pictures

        if pairs is not None:
            accuracy, decided = measure_reward(
                reward, pairs, teacher=teacher, seed=seed, device=device, reporter=observer
            )
            found = {str(timestep): value for timestep, value in accuracy.items()}
            lines = found_lines(found, decided, "pairs with a winner")
            output.result({"decided": decided, "accuracy": found}, lines, lines[1:])
            return
        scores = score_pictures(
            reward,
            images or [],
            str(prompt),
            at_timestep=at_timestep,
            teacher=teacher,
            seed=seed,
            device=device,
            reporter=observer,
        )
        rows = [{"image": str(image), "score": value} for image, value in zip(images or [], scores, strict=True)]
        output.result(rows, [f"{row['score']:9.4f}  {row['image']}" for row in rows], [str(v) for v in scores])
