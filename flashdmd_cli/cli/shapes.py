"""`flashdmd shapes`: rebuilds the embedded world's models, which the package ships."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from flashdmd_cli.building import PARTS
from flashdmd_cli.cli.options import AsJson, Debug, Quiet, Seed
from flashdmd_cli.cli.output import Progress, command

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
        int | None, typer.Option(help="Number of training steps (default: depends on the part).", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="End the training of sd3 after so many minutes.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device for sd3, reward and sd3-reward (default: the fastest).", show_default=False),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one part of the embedded world. Build the parts in the listed order; the same command again resumes."""
    with command(as_json, quiet, debug, resumes=True) as output, Progress(output) as observer:
        from flashdmd_cli.workflows.shapes import build_part

        began = time.monotonic()
        metrics = build_part(part, out, work, steps=steps, minutes=minutes, device=device, seed=seed, reporter=observer)
        if part == "picture":
            output.result(
                {"part": part, "out": out}, f"{out / 'picture.png'}: the reference picture of doctor", str(out)
            )
            return
        document = {"part": part, "out": out, "metrics": metrics, "seconds": time.monotonic() - began}
        text = "".join(f", {name} {value:.3f}" for name, value in metrics.items())
        output.result(document, f"{out}: {part} built{text}", str(out))
