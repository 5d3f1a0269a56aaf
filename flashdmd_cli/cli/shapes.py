"""`flashdmd shapes`: rebuild what the package ships of the embedded world."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.kinds import SHAPES
from flashdmd_cli.cli.options import AsJson, Debug, Quiet, Seed
from flashdmd_cli.cli.output import Output, Progress, command
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import writing
from flashdmd_cli.runs.lock import hold

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("inspector", "vae", "text", "unet", "sam", "reward", "picture")
TEACHER_STEPS = 4
"""Steps in which the teacher draws pictures for pairs: as a student does, with its mistakes."""

shapes_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@shapes_app.callback()
def shapes() -> None:
    """The embedded world: rebuild the models that the package ships."""


def build_reward(out: Path, work: Path, steps: int | None, seed: int, output: Output) -> Path:
    """Pairs drawn by the shipped teacher and labelled by the shipped inspector, and a reward model trained on them."""
    from flashdmd_cli.building.pairs import build_pairs
    from flashdmd_cli.cli.drawing import as_teacher, load_family
    from flashdmd_cli.cli.reward_run import run_reward
    from flashdmd_cli.runs.recipe import load_reward_recipe
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.shapes.inspector import load_inspector

    recipe = load_reward_recipe("reward/shapes", (), {"train.iterations": steps, "train.seed": seed})
    folder = asset(SHAPES)
    with Progress(output) as observer:
        teacher = as_teacher(load_family(folder), SHAPES, folder, "stochastic", TEACHER_STEPS)

        def draw(texts: Sequence[str], first: int) -> Tensor:
            from flashdmd_cli.evaluation.generate import generate

            return generate(teacher.family, teacher.net, texts, seed, "stochastic", TEACHER_STEPS, teacher.guidance,
                            first_index=first)  # fmt: skip

        pairs = build_pairs(draw, load_inspector(asset("inspector")), work / "pairs", seed=seed, say=output.say)
        return run_reward(recipe, pairs, out, observer, half=True)


@shapes_app.command("build")
def build(
    part: Annotated[str, typer.Argument(help=f"What to build: {', '.join(PARTS)}.", metavar="PART")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the finished model; vae, text and unet share one.")],
    work: Annotated[
        Path, typer.Option("--work", help="Folder of checkpoints and logs, shared by all parts; the same call resumes.")
    ] = Path("build"),
    steps: Annotated[
        int | None, typer.Option(help="Training steps (default: the part's recipe).", show_default=False)
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one part of the embedded world. Order: as listed; the same command again resumes."""
    with command(as_json, quiet, debug) as output:
        if part not in PARTS:
            raise UsageError(f"PART {part}: unknown", hint=f"known parts: {', '.join(PARTS)}")
        if steps is not None and steps < 1:
            raise UsageError(f"--steps {steps}: must be at least 1", hint="leave it out for the part's recipe")
        began = time.monotonic()
        with writing(work, "--work"):
            work.mkdir(parents=True, exist_ok=True)
            hold(work, "--work")
        if part == "picture":
            from flashdmd_cli.cli.known_picture import save_known
            from flashdmd_cli.shapes.assets import asset

            path = save_known(asset(SHAPES), out)
            output.result({"part": part, "out": out}, f"{path}: what doctor compares with", str(out))
            return
        if part == "reward":
            folder = build_reward(out, work, steps, seed, output)
            figures = {
                f"accuracy_{t}": v for t, v in json.loads((folder / "report.json").read_text())["accuracy"].items()
            }
            told = "".join(f", {name} {value:.3f}" for name, value in figures.items())
            document = {"part": part, "out": out, "figures": figures, "seconds": time.monotonic() - began}
            output.result(document, f"{out}: {part} built{told}", str(out))
            return
        length = {} if steps is None else {"steps": steps}
        builder = getattr(importlib.import_module(f"flashdmd_cli.building.{part}"), f"build_{part}")
        # The builders tell their progress by `print`; stdout is for results.
        with contextlib.redirect_stdout(sys.stderr):
            # The autoencoder is one folder among others of the teacher's; the other builders name theirs themselves.
            figures = builder(work, out / "vae" if part == "vae" else out, seed=seed, **length)
        figures = figures if isinstance(figures, dict) else {}
        document = {"part": part, "out": out, "figures": figures, "seconds": time.monotonic() - began}
        told = "".join(f", {name} {value:.3f}" for name, value in figures.items())
        output.result(document, f"{out}: {part} built{told}", str(out))
