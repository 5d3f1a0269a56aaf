"""`flashdmd prepare-data`: a source of captioned pictures becomes shards with a manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Out, Quiet, Seed, TeacherConfig, Vae, Yes
from flashdmd_cli.cli.output import Output, Progress, command
from flashdmd_cli.cli.prepare_options import Options
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.workflows.inputs.kinds import SHAPES
from flashdmd_cli.workflows.inputs.teachers import Parts

if TYPE_CHECKING:
    from flashdmd_cli.cli.prepare_workers import Share
    from flashdmd_cli.runs.manifest import Manifest

SOURCES = ("shapes",)
NUM_SHAPES = 2000


def prepare(source: str, out: Path, num: int, seed: int, observer: Progress, yes: bool = False) -> Path:
    """Write `num` pictures of `source` as shards into `out` and return it; what is complete already is kept."""
    if source not in SOURCES:
        raise UsageError(f"SOURCE {source}: unknown", hint=f"a path, or one of {', '.join(SOURCES)}")
    if num < 1:
        raise UsageError(f"--num {num}: must be at least 1", hint="try --num 2000")
    wanted = {"source": source, "num": num, "seed": seed}
    if already(out, wanted, yes):
        observer.phase(f"{out} holds these {num} pictures already")
        return out
    claim(out, "data", yes, resumes=False)
    write(out, wanted, observer)
    return out


def already(out: Path, wanted: dict[str, Any], yes: bool) -> bool:
    """Whether `out` is the finished result of the same request; UsageError when it is that of another one."""
    from flashdmd_cli.runs.manifest import read_manifest

    if yes or not (out / "manifest.json").is_file():
        return False
    manifest = read_manifest(out)
    if manifest.kind != "data" or {key: manifest.recipe.get(key) for key in wanted} != wanted:
        raise UsageError(f"--out {out}: holds other data", hint="--yes replaces it, or choose another folder")
    return True


def write(out: Path, wanted: dict[str, Any], observer: Progress) -> None:
    """Render, shard, and write the manifest last."""
    from flashdmd_cli.data.shards import write_shards
    from flashdmd_cli.runs.files import writing
    from flashdmd_cli.runs.manifest import FileRecord, Manifest, write_manifest
    from flashdmd_cli.shapes.samples import shapes_samples

    num, seed, began = wanted["num"], wanted["seed"], time.monotonic()
    observer.phase(f"rendering {num} captioned pictures into {out}", "picture")

    observer.progress(0, num)

    def counted() -> Iterator[dict[str, Any]]:
        for done, sample in enumerate(shapes_samples(num, seed), start=1):
            observer.progress(done, num)
            yield sample

    with writing(out):
        written = write_shards(counted(), out)
    manifest = Manifest(
        kind="data",
        files=[FileRecord(path=path.relative_to(out).as_posix()) for path in written.files],
        recipe=wanted,
        seed=seed,
        wall_seconds=time.monotonic() - began,
        license="Apache-2.0",
    )
    write_manifest(out, manifest)


def from_source(
    given: Options, out: Path, observer: Progress, nproc: int, index: int | None, count: int | None, yes: bool
) -> tuple[Manifest | None, Share]:
    """Prepare a collection: the manifest, None while other shares have work left; and which share this was."""
    from flashdmd_cli.cli.prepare_options import make_request
    from flashdmd_cli.cli.prepare_run import Preparation
    from flashdmd_cli.cli.prepare_workers import Share

    if nproc < 1:
        raise UsageError(f"--nproc {nproc}: must be at least 1")
    share = Share.find(index, count)
    if yes and share.count > 1:
        raise UsageError("--yes: several processes would empty the folder under each other", hint="remove it first")
    request = make_request(given)
    return Preparation(request, out, share, nproc, observer).run(yes), share


def next_command(folder: Path, teacher: str, pictures: bool = True) -> str:
    """What to do with the data; prompts without pictures have nothing for a discriminator."""
    return f"flashdmd distill --teacher {teacher} --data {folder}" + ("" if pictures else " --set gan.kind=none")


def tell(output: Output, folder: Path, manifest: Manifest | None, teacher: str) -> None:
    """The result, with the numbers of each filter."""
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
            f"{folder}: {facts.kept} of {facts.seen} {noun} kept in {shards} shards"
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
        str | None, typer.Option("--format", help="What SOURCE is (default: seen by its files).", show_default=False)
    ] = None,
    teacher: Annotated[
        str, typer.Option("--teacher", help="Whose resolution, and whose encoders for --cache.")
    ] = "sdxl",
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="Side in pixels instead of the teacher's.", show_default=False)
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Keep rows with e.g. `aesthetic>=6.25`, `min_side>=512`; may be repeated."),
    ] = None,
    duplicates: Annotated[
        str, typer.Option("--duplicates", help="Drop `exact` ones, also `near` ones, or `keep` all.")
    ] = "exact",
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    cache: Annotated[str, typer.Option("--cache", help="`latents`, `text` or `latents,text`, beside the pixels.")] = "",
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="Column or JSON key of captions.", show_default=False)
    ] = None,
    image_column: Annotated[
        str | None, typer.Option("--image-column", help="Parquet column of pictures.", show_default=False)
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option("--caption", help="Of several captions of a picture `first` (default) or `random` (by --seed)."),
    ] = None,
    captions_from_names: Annotated[
        bool, typer.Option("--captions-from-names", help="A picture without a caption takes its file's name.")
    ] = False,
    suite: Annotated[
        str | None, typer.Option("--suite", help="`coco10k`: its 10,000 prompts, from captions_val2014.json.")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option("--encode", help="`png`, `jpg` or `webp` (default: png up to 256 px).", show_default=False),
    ] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", help="Rows of SOURCE per shard.")] = 1000,
    num: Annotated[
        int | None, typer.Option("--num", help="How many (default: all; shapes: 2000).", show_default=False)
    ] = None,
    nproc: Annotated[int, typer.Option("--nproc", help="Processes on this machine.")] = 1,
    shard_index: Annotated[
        int | None, typer.Option("--shard-index", help="This job's number in a job array.", show_default=False)
    ] = None,
    shard_count: Annotated[
        int | None, typer.Option("--shard-count", help="Jobs in the array.", show_default=False)
    ] = None,
    seed: Seed = 0,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn captioned pictures, or prompts, into shards. The same command again goes on, or does nothing."""
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        path = Path(source)
        if source in SOURCES or (not path.exists() and path.name == source and not path.suffix):
            num = NUM_SHAPES if num is None else num
            folder = prepare(source, out or RUNS / f"data-{source}", num, seed, observer, yes)
            document = {"out": folder, "manifest": folder / "manifest.json", "num": num, "seed": seed}
            output.result(document, f"{folder}: {num} pictures (next: {next_command(folder, SHAPES)})", str(folder))
            return
        folder = out or RUNS / f"data-{suite or path.resolve().stem}"
        reading = {
            "format": format_,
            "image_column": image_column,
            "caption_column": caption_column,
            "names_are_captions": captions_from_names,
            "suite": suite,
            "caption": caption,
            "seed": seed if caption == "random" else None,
        }
        given = Options(path, reading, filters or [], resolution, encoding, duplicates, teacher, cache, shard_size, num,
                        Parts(vae, teacher_config))  # fmt: skip
        manifest, share = from_source(given, folder, observer, nproc, shard_index, shard_count, yes)
        if share.tells:
            tell(output, folder, manifest, teacher)
