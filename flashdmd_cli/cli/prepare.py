"""`flashdmd prepare-data`: converts captioned pictures or prompts to shards with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Out, Quiet, Seed, TeacherConfig, Vae, Yes
from flashdmd_cli.cli.output import Output, Progress, command
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.reporter import counted
from flashdmd_cli.runs.share import Share
from flashdmd_cli.workflows.inputs.kinds import SHAPES

if TYPE_CHECKING:
    from flashdmd_cli.runs.manifest import Manifest

SOURCES = ("shapes",)
SUITES = ("coco10k",)
"""Suites of `flashdmd eval`, which are prompts and not shards."""


def next_command(folder: Path, teacher: str, pictures: bool = True) -> str:
    """The command that uses the data; without pictures, the discriminator is switched off."""
    return f"flashdmd distill --teacher {teacher} --data {folder}" + ("" if pictures else " --set gan.kind=none")


def print_result(output: Output, folder: Path, manifest: Manifest | None, teacher: str) -> None:
    """Print the result, with the number of rejected rows for each reason."""
    from flashdmd_cli.data.items import meaning

    if manifest is None or manifest.collection is None:
        again = "run the same command again when the other shares are done"
        output.result({"out": folder, "finished": False}, f"{folder}: this share is done ({again})", str(folder))
        return
    facts = manifest.collection
    shards = sum(record.path.endswith(".tar") for record in manifest.files)
    document = {
        "out": folder,
        "manifest": folder / "manifest.json",
        "finished": True,
        "seen": facts.seen,
        "kept": facts.kept,
        "rejected": facts.rejected,
        "converted": facts.converted,
        "shards": shards,
        "cache": facts.cache.what if facts.cache else [],
    }
    noun = "pictures" if facts.pictures else "prompts"
    converted = ", ".join(f"{count} {note}" for note, count in facts.converted.items())
    output.result(
        document,
        [
            f"{folder}: {facts.kept} of {facts.seen} {noun} kept in {counted(shards, 'shard')}"
            f" (next: {next_command(folder, teacher, facts.pictures)})",
            *(f"  {num:>8}  {reason:<18} {meaning(reason)}" for reason, num in facts.rejected.items()),
            *([f"converted: {converted}"] if converted else []),
        ],
        str(folder),
    )


def prepare_data(
    source: Annotated[
        str,
        typer.Argument(help="`shapes` (the embedded world), or a path: pictures, tars, parquet, COCO, prompts."),
    ],
    out: Out = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of SOURCE (default: detected).", show_default=False)
    ] = None,
    teacher: Annotated[
        str, typer.Option("--teacher", help="Model whose resolution, and encoders for --cache, are used.")
    ] = "sdxl",
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="Side in pixels instead of the teacher's.", show_default=False)
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Keep rows with e.g. `aesthetic>=6.25`, `min_side>=512`; may be repeated."),
    ] = None,
    duplicates: Annotated[
        str,
        typer.Option("--duplicates", help="Drop `exact` copies, also `near` ones (similar pictures), or `keep` all."),
    ] = "exact",
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    cache: Annotated[str, typer.Option("--cache", help="Write also `latents`, `text` or `latents,text`.")] = "",
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="Column or JSON key of captions.", show_default=False)
    ] = None,
    image_column: Annotated[
        str | None, typer.Option("--image-column", help="Parquet column of pictures.", show_default=False)
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option("--caption", help="If a picture has several captions: `first` (default) or `random` (by --seed)."),
    ] = None,
    captions_from_names: Annotated[
        bool, typer.Option("--captions-from-names", help="Use the file name as caption where there is none.")
    ] = False,
    suite: Annotated[
        str | None, typer.Option("--suite", help="`coco10k`: the prompts of eval --suite coco10k; or `coco10k-hash`.")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option("--encode", help="`png`, `jpg` or `webp` (default: png up to 256 px).", show_default=False),
    ] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", help="Rows of SOURCE per shard.")] = 1000,
    num: Annotated[
        int | None,
        typer.Option("--num", help="Number of rows to read (default: all; shapes: 2000).", show_default=False),
    ] = None,
    nproc: Annotated[int, typer.Option("--nproc", help="Number of processes on this machine.")] = 1,
    shard_index: Annotated[
        int | None, typer.Option("--shard-index", help="Index of this job in a job array, from 0.", show_default=False)
    ] = None,
    shard_count: Annotated[
        int | None, typer.Option("--shard-count", help="Number of jobs in the array.", show_default=False)
    ] = None,
    seed: Seed = 0,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert captioned pictures, or prompts, to shards. The same command again resumes, or does nothing."""
    with command(as_json, quiet, debug, resumes=True) as output, Progress(output) as observer:
        from flashdmd_cli.workflows.prepare import NUM_SHAPES, prepare, prepare_shapes, prepare_suite

        path = Path(source)
        if suite in SUITES:
            folder = out or RUNS / f"data-{suite}"
            facts = prepare_suite(path, folder, suite=str(suite), replace=yes, reporter=observer)
            named = suite if folder == RUNS / f"data-{suite}" else folder / f"{suite}.yaml"
            text = [f"{folder}: {facts['prompts']} prompts (next: flashdmd eval --suite {named})", facts["check"]]
            output.result(facts, text, str(folder))
            return
        if source in SOURCES or (not path.exists() and path.name == source and not path.suffix):
            if source not in SOURCES:
                raise UsageError(f"SOURCE {source}: unknown", hint=f"a path, or one of {', '.join(SOURCES)}")
            folder, num = out or RUNS / f"data-{source}", NUM_SHAPES if num is None else num
            prepare_shapes(folder, num=num, seed=seed, replace=yes, reporter=observer)
            document = {"out": folder, "manifest": folder / "manifest.json", "num": num, "seed": seed}
            output.result(
                document, f"{folder}: {counted(num, 'picture')} (next: {next_command(folder, SHAPES)})", str(folder)
            )
            return
        folder, share = out or RUNS / f"data-{suite or path.resolve().stem}", Share.find(shard_index, shard_count)
        manifest = prepare(
            path, folder, format=format_, teacher=teacher, vae=vae, teacher_config=teacher_config,
            resolution=resolution, filters=filters or [], duplicates=duplicates,
            cache=cache.split(",") if cache else [], caption_column=caption_column, image_column=image_column,
            caption=caption, captions_from_names=captions_from_names, suite=suite, encoding=encoding,
            shard_size=shard_size, num=num, seed=seed, replace=yes, num_processes=nproc, share=share, reporter=observer,
        )  # fmt: skip
        if share.reports:
            print_result(output, folder, manifest, teacher)
