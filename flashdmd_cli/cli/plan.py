"""`flashdmd plan`: what a distillation needs, counted without a GPU or a download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Quiet
from flashdmd_cli.cli.output import command, to_stdout

if TYPE_CHECKING:
    from flashdmd_cli.workflows.plan.planning import Plan


def plan(
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe to plan, by name or YAML file.")] = "sdxl-4step",
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, `train.micro_batch=4`; may be repeated.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="h200, h100, a100, 4090, ... (default: this machine's).", show_default=False)
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="GPUs, each with its share of every batch.")] = 1,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Of one GPU for an hour, in any currency: adds the cost.", show_default=False),
    ] = None,
    resolution: Annotated[int, typer.Option(min=64, help="Side of the pictures in pixels.")] = 1024,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Plan a distillation of SDXL or SD3: operations, memory, disk, GPU-hours, cost. Nothing is run or downloaded."""
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.runs.recipe import load_recipe
        from flashdmd_cli.workflows.plan.gpus import GPUS, gpu_named
        from flashdmd_cli.workflows.plan.planning import check
        from flashdmd_cli.workflows.plan.planning import plan as make

        chosen = load_recipe(recipe, sets or [])
        check(chosen)
        if (device := gpu_named(gpu)) is None:
            output.say(f"no GPU on this machine: --gpu adds hours, cost, and whether it fits ({', '.join(GPUS)})")
        found = make(chosen, device, resolution, processes=nproc, price=price)
        if not (output.as_json or output.quiet):
            show(found)
        if warning := shortage(found):
            output.say(f"warning: {warning}")
        other = None
        if device is not None and found.fits is False and not output.quiet:
            from flashdmd_cli.workflows.plan.fitting import what_fits

            output.say("looking for a shipped recipe that fits ...")
            other = what_fits(chosen, device, resolution, nproc)
            output.say(alternative(other))
        if output.as_json or output.quiet:
            document = found.as_dict() | {"alternative": None if other is None else other.recipe}
            output.result(document, "", found.recipe)


def show(found: Plan) -> None:
    """Tables of operations, memory and disk, and one line of time and cost."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = (
        f"{found.recipe}: {found.family.upper()} with {found.parameters / 1e9:.2f} B parameters at "
        f"{found.resolution} px; {found.trained} are trained{', checkpointed' if found.checkpointing else ''}"
    )
    trained = " + ".join(f"{name} {num / 1e6:.0f}" for name, num in found.trainable_by_network.items())
    tables = (
        ("operations for one picture in an iteration", "TFLOP", found.tflop_by_part, found.tflop_per_sample),
        (
            f"memory at micro-batch {found.micro_batch}, phase: {found.largest_phase}",
            "GB",
            found.memory_by_part,
            found.peak_gb,
        ),
        ("disk", "GB", found.disk_gb, None),
    )
    with to_stdout():
        console.print(title, highlight=False, soft_wrap=True)
        console.print(
            f"trained parameters, in millions: {trained} = {found.trainable / 1e6:.0f}", highlight=False, soft_wrap=True
        )
        for name, unit, rows, total in tables:
            table = Table(title=name)
            table.add_column("part")
            table.add_column(unit, justify="right")
            for part, value in rows.items():
                table.add_row(part, f"{value:.2f}")
            if total is not None:
                table.add_row("sum", f"{total:.2f}")
            console.print(table)
        for line in summary(found)[1:]:
            console.print(line, highlight=False, soft_wrap=True)


def summary(found: Plan) -> list[str]:
    """The plan in a few lines: operations and memory of a picture, the run, whether it fits, and what it costs."""
    lines = [
        f"plan: {found.tflop_per_sample:.1f} TFLOP (10^12 operations) for a picture, {found.peak_gb:.1f} GB at "
        f"micro-batch {found.micro_batch} (in the phase: {found.largest_phase})",
        f"plan: {found.images} pictures ({found.batch} an iteration), {found.eflop:.3g} EFLOP (10^18 operations)",
    ]
    if found.device_gb is not None:
        fits, has = ("fits", "of") if found.fits else ("does not fit", "GB, and there are")
        lines.append(
            f"plan: {fits} {found.gpu}: needs {found.needed_gb:.1f} {has} {found.device_gb:.1f} GB, fragmentation and "
            "CUDA context included"
        )
    if found.gpu_hours is not None and found.seconds_per_iteration is not None:
        cost = "" if found.cost is None else f", costs {found.cost:.0f} in the currency of --price"
        source = "from speeds measured on this kind of GPU" if found.is_measured else "from assumed speeds"
        lines.append(
            f"plan: {found.processes} x {found.gpu}: {found.seconds_per_iteration:.3g} s an iteration, "
            f"{found.gpu_hours:.3g} GPU-hours{cost} ({source})"
        )
    return lines


def shortage(found: Plan) -> str:
    """What to change in a run that does not fit its device (`summary` has the sizes); empty for others."""
    if found.fits is not False:
        return ""
    less = [
        ("model.checkpointing=true", not found.checkpointing),
        ("a smaller train.micro_batch", found.micro_batch > 1),
        ("adapters (model.form=lora)", found.form == "full"),
    ]
    words = [text for text, helps in less if helps]
    hint = f" ({' or '.join(words)} needs less)" if words else ""
    return f"{found.recipe} will run out of memory on {found.gpu}{hint}"


def alternative(other: Plan | None) -> str:
    """A line on the recipe that fits instead."""
    if other is None:
        return "no shipped recipe for this model, number of steps and gan.kind fits"
    return f"{other.recipe} fits ({other.trained}, {other.needed_gb:.1f} GB): --recipe {other.recipe}"
