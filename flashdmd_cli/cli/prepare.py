"""`flashdmd prepare-data`: a source of captioned pictures becomes shards with a manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Out, Quiet, Seed, Yes
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.cli.sources import RUNS, claim
from flashdmd_cli.runs.errors import UsageError

SOURCES = ("shapes",)


def prepare(source: str, out: Path, num: int, seed: int, observer: Progress, yes: bool = False) -> Path:
    """Write `num` pictures of `source` as shards into `out` and return it; what is complete already is kept."""
    if source not in SOURCES:
        raise UsageError(f"SOURCE {source}: unknown", hint=f"known sources: {', '.join(SOURCES)}")
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


def prepare_data(
    source: Annotated[str, typer.Argument(help="Where pictures come from: `shapes`, the embedded world.")],
    out: Out = None,
    num: Annotated[int, typer.Option("--num", help="How many pictures.")] = 2000,
    seed: Seed = 0,
    yes: Yes = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write captioned pictures as shards."""
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        folder = prepare(source, out or RUNS / f"data-{source}", num, seed, observer, yes)
        document = {"out": folder, "manifest": folder / "manifest.json", "num": num, "seed": seed}
        output.result(document, f"{folder}: {num} pictures (next: flashdmd distill --data {folder})", str(folder))
