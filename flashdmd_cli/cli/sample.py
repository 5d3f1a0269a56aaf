"""`flashdmd sample`: pictures for prompts, from a student, a teacher or a preset, beside those of other models."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Device, From, Model, Out, Quiet, TeacherConfig, Vae
from flashdmd_cli.cli.output import Output, Progress, command
from flashdmd_cli.runs.errors import UsageError

MAX_SEEDS = 100_000


def sample(
    source: From = None,
    model: Model = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be repeated.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts: text, JSON, JSON lines, CSV, TSV or parquet; - for stdin.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        str, typer.Option("--seed", help="Seed of each prompt's picture, or several: 1,5,8-11.", metavar="SEEDS")
    ] = "0",
    num: Annotated[int, typer.Option("--num", help="Pictures per prompt, with --seed and the ones after it.")] = 1,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Another model beside it, as in --from, or `teacher` for the student's; may be repeated.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Width x height in pixels: 1216x832, or 1024 (default: the teacher's).", show_default=False),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="For a teacher: ddim or stochastic (default: ddim).", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps (student: its grid; teacher: 30).", show_default=False)
    ] = None,
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the networks: a slow start, then faster.")
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Draw in a browser instead: a page on this machine, until Ctrl-C. It starts with "
            "--prompt and --seed, and draws at --size.",
        ),
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Of --serve (default: 7860; 0: a free one).", show_default=False)
    ] = None,
    device: Device = None,
    out: Out = None,
    list_models: Annotated[bool, typer.Option("--list-models", help="List the models for --model, and end.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw pictures for prompts.

    Pictures of one seed start from the same noise, whatever the prompt, the model and the pictures beside it.
    """
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        if list_models:
            return show_models(output)
        seeds, pixels = parse_seeds(seed), None if size is None else parse_size(size)
        how: dict[str, Any] = dict(
            compare=compare or [], size=pixels, sampler=sampler, steps=steps, vae=vae, teacher_config=teacher_config,
            compiled=compiled, device=device, reporter=observer, model=model,
        )  # fmt: skip
        if serve:
            refuse_with_serve({"--prompts": prompts, "--out": out, "--num": None if num == 1 else num})
            if len(prompt or []) > 1:
                raise UsageError(
                    f"--prompt: the page starts with one, and {len(prompt or [])} are given", hint="name one"
                )
            if len(seeds) > 1:
                raise UsageError(f"--seed {seed}: the page starts with one", hint="name one")
            return serve_page(source, port, checked(prompt or []), seeds[0], how, output)
        if port is not None:
            raise UsageError(f"--port {port}: goes with --serve", hint="add --serve, or leave it out")
        texts = gather_prompts(prompt or [], prompts, output)
        from flashdmd_cli.workflows.sample import sample as run_sample

        drawn = run_sample(texts, source, out, num=num, seed=seeds, **how)
        folder = drawn.out
        document = {"out": folder, "manifest": folder / "manifest.json", "grid": drawn.grid, "files": drawn.files}
        text = f"{folder}: {len(drawn.pictures)} pictures, side by side in {drawn.grid}"
        if len(drawn.pictures) == 1:
            text = f"{drawn.pictures[0]}: the picture"
        output.result(document, text, str(folder))


def parse_seeds(text: str) -> list[int]:
    """The seeds of `--seed`: numbers and ranges with commas between."""
    seeds: list[int] = []
    for part in text.split(","):
        if (found := re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)) is None:
            raise UsageError(
                f"--seed {text}: {part.strip() or 'nothing'} is no seed", hint="for example 7, or 1,5,8-11"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first >= MAX_SEEDS:
            raise UsageError(f"--seed {text}: {part.strip()} is no range of seeds", hint="for example 8-11")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `--size`, which is written as WIDTHxHEIGHT or as one number for both."""
    if (found := re.fullmatch(r"(\d{1,5})(?:[xX×](\d{1,5}))?", text.strip())) is None:
        raise UsageError(f"--size {text}: is no size", hint="width x height in pixels, for example 1216x832 or 1024")
    return int(found[2] or found[1]), int(found[1])


def gather_prompts(prompts: Sequence[str], file: Path | None, output: Output) -> list[str]:
    """The prompts of both options; a file named `-` is stdin."""
    texts = list(prompts)
    if file is not None:
        from flashdmd_cli.data.prompts import read_prompt_lines, read_prompts

        if file != Path("-"):
            texts += read_prompts(file)
        else:
            if sys.stdin.isatty():
                output.say("--prompts -: type a prompt a line, then Ctrl-D")
            texts += read_prompt_lines(sys.stdin.buffer)
    if not texts:
        example = '--prompt "a striped red ring left of a plain blue square"'
        raise UsageError("--prompt: nothing to draw", hint=f"{example}, or --prompts FILE")
    return checked(texts)


def checked(texts: list[str]) -> list[str]:
    """The same prompts; UsageError for one with bytes of another encoding, or with half of a JSON escape."""
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(f"--prompt {text}: is not UTF-8 text", hint="write it in a UTF-8 file, --prompts FILE")
    return texts


def refuse_with_serve(given: Mapping[str, object]) -> None:
    """UsageError for the first option that has a value, of those that have no meaning for a page."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} {value}: does not go with --serve", hint="leave it out, and use the page")


def serve_page(
    source: str | None, port: int | None, prompt: Sequence[str], seed: int, how: dict[str, Any], output: Output
) -> None:
    """Print the address of the page and serve it; Ctrl-C is the ordinary end, with exit code 0."""
    from flashdmd_cli.runs.signals import StopSignal
    from flashdmd_cli.workflows.serve.run import PORT, serve

    def ready(url: str) -> None:
        output.result({"url": url}, f"{url} draws what you type there; Ctrl-C ends it", url)

    try:
        serve(
            source, port=PORT if port is None else port, prompt=next(iter(prompt), None), seed=seed, ready=ready, **how
        )
    except StopSignal:
        output.say("stopped serving")


def show_models(output: Output) -> None:
    """Print the presets with steps, guidance, size and licence; as JSON with all fields."""
    from flashdmd_cli.evaluation.baselines.preset import list_presets, read_preset

    presets = [read_preset(name) for name in list_presets()]
    rows = [("model", "steps", "guidance", "size", "licence")]
    rows += [(each.name, str(each.steps), f"{each.guidance:g}", str(each.size), each.licence) for each in presets]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    output.result([each.model_dump(mode="json") for each in presets], lines, [each.name for each in presets])
