"""Rendering of the embedded world's pictures to shards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import writing
from flashdmd_cli.runs.folder import claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import MANIFEST, FileRecord, Manifest, read_manifest, write_manifest
from flashdmd_cli.runs.reporter import Reporter, SilentReporter, counted

NUM_SHAPES = 2000


@releasing()
def prepare_shapes(
    out: Path | str,
    *,
    num: int = NUM_SHAPES,
    seed: int = 0,
    replace: bool = False,
    reporter: Reporter | None = None,
) -> Manifest:
    """Write `num` pictures of the embedded world as shards into the folder `out`, and return its manifest.

    A finished result is returned unchanged. `replace` deletes the contents of `out` first; all random numbers depend on
    `seed`. Raises `UsageError` if `num` is less than 1, or `out` contains other data.
    """
    reporter, out = reporter or SilentReporter(), Path(out)
    if num < 1:
        raise UsageError(f"--num {num}: must be at least 1", hint="try --num 2000")
    wanted = {"source": "shapes", "num": num, "seed": seed}
    if not replace and (finished := existing(out, wanted)):
        reporter.phase(f"{out} contains these {num} pictures already")
        return finished
    claim(out, "data", replace, resumes=False)
    return write(out, num, seed, wanted, reporter)


def existing(out: Path, wanted: dict[str, Any]) -> Manifest | None:
    """The manifest of `out` if it is a finished result with the same options; UsageError if with others."""
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
    if manifest.kind != "data" or {key: manifest.recipe.get(key) for key in wanted} != wanted:
        raise UsageError(f"--out {out}: holds other data", hint="--yes replaces it, or choose another folder")
    return manifest


def write(out: Path, num: int, seed: int, wanted: dict[str, Any], reporter: Reporter) -> Manifest:
    """Render the pictures, write them to shards, then write the manifest."""
    from flashdmd_cli.data.index import INDEX, build_sample_index, sizes_of_files, write_index
    from flashdmd_cli.data.shards import write_shards
    from flashdmd_cli.shapes.samples import shapes_samples

    began = time.monotonic()
    reporter.phase(f"rendering {counted(num, 'captioned picture')} into {out}", "picture")
    reporter.progress(0, num)

    def samples() -> Iterator[dict[str, Any]]:
        for done, sample in enumerate(shapes_samples(num, seed), start=1):
            reporter.progress(done, num)
            yield sample

    with writing(out):
        written = write_shards(samples(), out)
        write_index(out / INDEX, sizes_of_files(written.files), build_sample_index(written.files))
    return write_manifest(
        out,
        Manifest(
            kind="data",
            files=[FileRecord(path=path.relative_to(out).as_posix()) for path in (*written.files, out / INDEX)],
            recipe=wanted,
            seed=seed,
            wall_seconds=time.monotonic() - began,
            license="Apache-2.0",
        ),
    )
