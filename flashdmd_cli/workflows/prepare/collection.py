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

    The same call again goes on where the last one ended, or does nothing. With a `share` of the work, None while
    other shares have work left.

    Args:
        source: a folder of pictures, tars, parquet, COCO annotations or a list of prompts.
        out: where shards, report and manifest go; not inside `source`.
        format: what `source` is; found out by its files unless given.
        teacher: whose resolution the pictures get, and whose encoders fill the caches.
        vae: autoencoder instead of the teacher's.
        teacher_config: configurations of a teacher in one file.
        resolution: side in pixels instead of the teacher's.
        filters: rows to keep, for example `aesthetic>=6.25`; unless `min_side` is among them, nothing is enlarged.
        duplicates: drop `exact` ones, also `near` ones, or `keep` all.
        cache: `latents`, `text` or both, written beside the pixels.
        caption_column: column or JSON key of captions.
        image_column: parquet column of pictures.
        caption: of several captions of a picture the `first` (default), or a `random` one, drawn with `seed`.
        captions_from_names: a picture without a caption takes its file's name.
        suite: `coco10k-hash`, 10,000 images chosen by a hash of their ids; for `coco10k` see `prepare_suite`.
        encoding: `png`, `jpg` or `webp`; png up to 256 pixels unless given.
        shard_size: rows of `source` for each shard.
        num: how many rows to take; all unless given.
        seed: of the random captions.
        replace: empty `out` first.
        num_processes: processes on this machine.
        share: which part of the work is this process's; all of it unless given.
        reporter: told how far the work is.

    Raises:
        UsageError: for an option that makes no sense, or an `out` that holds other data.
        InputError, DataError: for a source or a teacher that is missing or unreadable, or of which nothing is kept.
        Interrupted: after a signal; what is finished stays.
    """
    share = share or Share()
    if num_processes < 1:
        raise UsageError(f"--nproc {num_processes}: must be at least 1")
    if replace and share.count > 1:
        raise UsageError("--yes: several processes would empty the folder under each other", hint="remove it first")
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
