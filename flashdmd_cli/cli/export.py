"""`flashdmd export`: converts a student to formats that other programs read."""

from __future__ import annotations

from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Out, Quiet, Yes
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.export import FORMATS
from flashdmd_cli.runs.files import size


def export(
    source: Annotated[
        str | None,
        typer.Option("--from", help="A distilled checkpoint (default: the newest under ./runs).", show_default=False),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help=f"One or several, separated by commas: {', '.join(FORMATS)}.")
    ] = "diffusers",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Number format of the weights: fp32, fp16, bf16, or fp8 for a single file; several, separated by "
            "commas, write variants of a diffusers folder (default: as stored; fp16 for a single file and for the LoRA "
            "of a student whose weights were all trained).",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            help="Rank of the LoRA of a student whose weights were all trained (default: 64).",
            show_default=False,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="USER/REPO", help="Upload to this repository on the hub.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and their sizes; no work.")] = False,
    out: Out = None,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a student as a stock pipeline folder, a LoRA, one file for ComfyUI and A1111, or ONNX files.

    Every format is loaded by stock diffusers afterwards, and its picture is compared with the student's. The same
    command again finishes an interrupted export, or uploads a finished one with --push.
    """
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        from flashdmd_cli.workflows.export import export as run_export

        made = run_export(
            source, out, form=names(form), dtype=names(dtype), rank=rank, push=push, dry_run=dry_run, replace=yes,
            reporter=observer,
        )  # fmt: skip
        folder = made.out
        files = dict(made.files)
        total = sum(num or 0 for num in files.values())
        document: dict[str, object] = {"out": folder, "files": files, "bytes": total, "steps": made.steps}
        if made.manifest is None:
            about = {path: "about " if path in made.estimated else "" for path in files}
            sizes = {path: "a few kB" if num is None else about[path] + size(num) for path, num in files.items()}
            sizes[f"in {len(files)} files"] = f"about {size(total)}"
            readers = {path: f"  (for {text})" for path, text in made.readers.items()}
            lines = [f"{text:>14}  {path}{readers.get(path, '')}" for path, text in sizes.items()]
            output.result(document | {"estimated": sorted(made.estimated), "readers": made.readers}, lines, str(folder))
            return
        assert made.manifest.export is not None
        document |= {
            "manifest": folder / "manifest.json",
            "formats": made.manifest.export.formats,
            "use": {each.format: each.code for each in made.use if each.code},
            "url": made.url,
        }
        where = f"{folder}, {made.url}" if made.url else str(folder)
        lines = [f"{where}: {size(total)}. To use it, as its README.md describes too:"]
        for each in made.use:
            lines += ["", each.about, *(["", each.code] if each.code else [])]
        output.result(document, lines, str(folder))


def names(text: str | None) -> list[str]:
    """The parts of a list that is separated by commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
