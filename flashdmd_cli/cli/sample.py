"""`flashdmd sample`: pictures for prompts, from a student, a teacher or a preset, side by side if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, From, Model, Out, Quiet, Seed, TeacherConfig, Vae
from flashdmd_cli.cli.output import Output, Progress, command
from flashdmd_cli.runs.errors import UsageError


def sample(
    source: From = None,
    model: Model = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be repeated.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts: text, JSON, JSON lines, CSV, TSV or parquet.", show_default=False),
    ] = None,
    num: Annotated[int, typer.Option("--num", help="Pictures per prompt.")] = 1,
    compare: Annotated[
        str | None, typer.Option(help="`teacher`: also draw with the student's teacher.", show_default=False)
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="For a teacher: ddim or stochastic (default: ddim).", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps (student: its grid; teacher: 30).", show_default=False)
    ] = None,
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    seed: Seed = 0,
    device: Device = None,
    out: Out = None,
    list_models: Annotated[bool, typer.Option("--list-models", help="List the models for --model, and end.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw pictures for prompts.

    Picture i starts from the same noise for every model.
    """
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        if list_models:
            return show_models(output)
        if compare not in (None, "teacher"):
            raise UsageError(f"--compare {compare}: unknown", hint="--compare teacher")
        texts = gather_prompts(prompt or [], prompts)
        from flashdmd_cli.workflows.sample import sample as run_sample

        drawn = run_sample(
            texts,
            source,
            out,
            num=num,
            compare_teacher=compare is not None,
            sampler=sampler,
            steps=steps,
            vae=vae,
            teacher_config=teacher_config,
            seed=seed,
            device=device,
            reporter=observer,
            model=model,
        )
        folder = drawn.out
        document = {"out": folder, "manifest": folder / "manifest.json", "grid": drawn.grid, "files": drawn.files}
        text = f"{folder}: {len(drawn.pictures)} pictures, side by side in {drawn.grid}"
        if len(drawn.pictures) == 1:
            text = f"{drawn.pictures[0]}: the picture"
        output.result(document, text, str(folder))


def gather_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of both options."""
    texts = list(prompts)
    if file is not None:
        from flashdmd_cli.data.prompts import read_prompts

        texts += read_prompts(file)
    if not texts:
        example = '--prompt "a striped red ring left of a plain blue square"'
        raise UsageError("--prompt: nothing to draw", hint=f"{example}, or --prompts FILE")
    for text in texts:
        if any(
            "\ud800" <= letter <= "\udfff" for letter in text
        ):  # bytes of another encoding, or half of a JSON escape
            raise UsageError(f"--prompt {text}: is not UTF-8 text", hint="write it in a UTF-8 file, --prompts FILE")
    return texts


def show_models(output: Output) -> None:
    """Print the presets with steps, guidance, size and licence; as JSON with all fields."""
    from flashdmd_cli.evaluation.baselines.preset import list_presets, read_preset

    presets = [read_preset(name) for name in list_presets()]
    rows = [("model", "steps", "guidance", "size", "licence")]
    rows += [(each.name, str(each.steps), f"{each.guidance:g}", str(each.size), each.licence) for each in presets]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    output.result([each.model_dump(mode="json") for each in presets], lines, [each.name for each in presets])
