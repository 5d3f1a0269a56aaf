"""The public function that prepares a collection of pictures or prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import Manifest
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.share import Share
from flashdmd_cli.workflows.inputs.teachers import Parts
from flashdmd_cli.workflows.prepare.request import Options, make_request
from flashdmd_cli.workflows.prepare.run import Preparation
from flashdmd_cli.workflows.prepare.workplace import Workplace


@releasing()
def prepare(
    source: Path | str,
    out: Path | str,
    *,
    format: str | None = None,
    teacher: str = "sdxl",
    vae: str | None = None,
    teacher_config: str | None = None,
    resolution: int | None = None,
    filters: Sequence[str] = (),
    duplicates: str = "exact",
    cache: Sequence[str] = (),
    caption_column: str | None = None,
    image_column: str | None = None,
    caption: str | None = None,
    captions_from_names: bool = False,
    suite: str | None = None,
    encoding: str | None = None,
    shard_size: int = 1000,
    num: int | None = None,
    seed: int = 0,
    replace: bool = False,
    num_processes: int = 1,
    share: Share | None = None,
    reporter: Reporter | None = None,
) -> Manifest | None:
    """Prepare the pictures or prompts in `source` as shards in the folder `out`, and return its manifest.

    The same call again resumes, or does nothing if all is finished. With a `share` of the work, returns None while
    other shares are unfinished.

    Args:
        source: a folder of pictures, tars, parquet files, COCO annotations or a list of prompts.
        out: folder for shards, report and manifest; not inside `source`.
        format: kind of `source` (default: detected from its files).
        teacher: model whose resolution the pictures get, and whose encoders make the caches.
        vae: autoencoder to use instead of the teacher's.
        teacher_config: configurations of a single-file teacher.
        resolution: side of the pictures in pixels, instead of the teacher's.
        filters: conditions for rows to keep, for example `aesthetic>=6.25`. Pictures are enlarged only if a condition
            on `min_side` allows smaller ones.
        duplicates: `exact` drops identical files, `near` also similar pictures, `keep` none.
        cache: `latents`, `text` or both, written in addition to the pictures.
        caption_column: column or JSON key of captions.
        image_column: parquet column of pictures.
        caption: if a picture has several captions, the `first` (default) or a `random` one, drawn with `seed`.
        captions_from_names: use the file name as caption of a picture without one.
        suite: `coco10k-hash`, 10,000 images chosen by a hash of their ids; for `coco10k` see `prepare_suite`.
        encoding: `png`, `jpg` or `webp` (default: png up to 256 pixels, else jpg).
        shard_size: rows of `source` per shard.
        num: number of rows to read (default: all).
        seed: seed of the random captions.
        replace: delete the contents of `out` first.
        num_processes: number of processes on this machine.
        share: the part of the work for this process (default: all).
        reporter: receives the progress.

    Raises:
        UsageError: for an invalid option, or if `out` contains other data.
        InputError, DataError: if a source or teacher is missing or unreadable, or all rows are rejected.
        Interrupted: after a signal; finished work is kept.
    """
    share = share or Share()
    if num_processes < 1:
        raise UsageError(f"--nproc {num_processes}: must be at least 1")
    if replace and share.count > 1:
        raise UsageError(
            "--yes: not possible with several processes, which would delete each other's files",
            hint="delete the folder first, and leave --yes out",
        )
    reading = {
        "format": format,
        "image_column": image_column,
        "caption_column": caption_column,
        "names_are_captions": captions_from_names,
        "suite": suite,
        "caption": caption,
        "seed": seed if caption == "random" else None,
    }
    parts = Parts(vae, teacher_config)
    given = Options(
        Path(source), reading, filters, resolution, encoding, duplicates, teacher, cache, shard_size, num, parts
    )
    workplace = Workplace(Path(out), share, num_processes, reporter or SilentReporter())
    return Preparation(make_request(given, workplace.reporter), workplace).run(replace)
