"""`flashdmd bench`: what training costs on this machine, measured without any download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, Quiet
from flashdmd_cli.cli.output import Progress, command, to_stdout

if TYPE_CHECKING:
    from flashdmd_cli.workflows.bench import Bench

DMD2 = "sdxl-4step-dmd2"


def bench(
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe to measure, by name or YAML file.")] = (
        "sdxl-4step-lora"
    ),
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, `train.micro_batch=4`; may be repeated.")
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(min=64, help="Side of the pictures in pixels (default: 1024, small: 64).", show_default=False),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Pictures of an iteration; those of a real run only add to it.")
    ] = 4,
    cycles: Annotated[int, typer.Option(min=1, help="Timed iterations, each with a student update.")] = 2,
    size: Annotated[
        Literal["true", "small"], typer.Option(help="True size, or a small network that shows that everything runs.")
    ] = "true",
    against: Annotated[
        Literal["dmd2"] | None, typer.Option(help="Also measure DMD2 as its authors run it.", show_default=False)
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure speed and memory of training SDXL or SD3 on this machine, with random weights: nothing is downloaded.

    DMD2 is measured with full fine-tuning, TTUR 5, and its script's number formats.
    """
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        from flashdmd_cli.runs.recipe import load_recipe

        flags = {"train.batch": batch, "model.device": device}
        resolution = resolution or (64 if size == "small" else 1024)
        chosen = load_recipe(recipe, sets or [], flags)
        from flashdmd_cli.workflows.bench import bench as measure  # imports torch

        found = [measure(chosen, resolution, cycles, small=size == "small",
                         reporter=observer)]  # fmt: skip
        if against is not None:
            crop = [text for text in sets or [] if text.startswith("train.micro_batch")]
            found.append(
                measure(load_recipe(DMD2, crop, flags), resolution, 1, small=size == "small", authors=True,
                        reporter=observer)
            )  # fmt: skip
        if output.as_json or output.quiet:
            output.result({"rows": [each.as_dict() for each in found]}, "", [each.recipe for each in found])
            return
        show(found)


def show(found: Sequence[Bench]) -> None:
    """One table of the measurements, one of their parts."""
    from rich.console import Console
    from rich.table import Table

    first = found[0]
    console = Console()
    table = Table(
        title=f"{first.device}: {first.family.upper()} with {first.parameters / 1e9:.2f} B parameters, "
        f"{first.resolution} px",
        caption=f"ceiling: {first.ceiling_tflops:.3g} TFLOP/s in large matrix products ({first.precision})",
    )
    for heading in ("recipe", "precision", "trained", "samples/s", "TFLOP a sample", "of the ceiling", "peak GB"):
        table.add_column(heading, justify="left" if heading in ("recipe", "precision") else "right")
    for each in found:
        table.add_row(
            each.recipe, each.precision, f"{each.trainable / 1e6:.0f} M", f"{each.samples_per_second:.3g}",
            f"{each.tflop / each.batch:.3g}", f"{each.utilisation:.1%}", f"{each.peak_gb:.1f}",
        )  # fmt: skip
    parts = Table(title="parts of an iteration")
    parts.add_column("part")
    for each in found:
        parts.add_column(f"{each.recipe}: s", justify="right")
        parts.add_column("TFLOP", justify="right")
    for name in dict.fromkeys(name for each in found for name in each.parts):
        cells = []
        for each in found:
            part = each.parts.get(name)
            cells += ["", ""] if part is None else [f"{part.seconds:.3f}", f"{part.tflop:.3g}"]
        parts.add_row(name, *cells)
    with to_stdout():
        console.print(table)
        console.print(parts)
