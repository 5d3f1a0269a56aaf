"""`flashdmd shapes`: rebuild what the package ships of the embedded world."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Quiet, Seed
from flashdmd_cli.cli.output import command
from flashdmd_cli.runs.errors import UsageError

PARTS = ("inspector", "vae", "text", "unet", "sam")

shapes_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@shapes_app.callback()
def shapes() -> None:
    """The embedded world: rebuild the models that the package ships."""


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
    """Train one part of the embedded world. Order: inspector, vae, text, unet, sam; the same command again resumes."""
    with command(as_json, quiet, debug) as output:
        if part not in PARTS:
            raise UsageError(f"PART {part}: unknown", hint=f"known parts: {', '.join(PARTS)}")
        if steps is not None and steps < 1:
            raise UsageError(f"--steps {steps}: must be at least 1", hint="leave it out for the part's recipe")
        began = time.monotonic()
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
