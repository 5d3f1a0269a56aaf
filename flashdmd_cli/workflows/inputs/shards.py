"""Opens the data of a run: the shards of prepare-data, with the caches that its teacher's encoders made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.workflows.encoders import encoders_hash

if TYPE_CHECKING:
    from flashdmd_cli.data.shards import ShardDataset
    from flashdmd_cli.families.files import Source
    from flashdmd_cli.runs.manifest import Manifest
    from flashdmd_cli.runs.recipe import Recipe
    from flashdmd_cli.runs.reporter import Reporter


def open_data(
    folder: Path, teacher: Path | Source | None = None, sized: bool = False, reporter: Reporter | None = None
) -> tuple[ShardDataset, Manifest]:
    """The shards of a data folder, the sizes of whose files are checked against its manifest, and the manifest.

    Caches are used if `teacher` has the encoders that made them. `sized`: batches contain the sizes of the pictures.
    Data of an earlier version have no index; it is built once, beside the shards or in the hub's cache of assets, and
    the `reporter` receives the progress. Raises `InputError` if the folder is not a result of prepare-data.
    """
    from flashdmd_cli.data.shards import ShardDataset
    from flashdmd_cli.runs.manifest import MANIFEST, read_manifest

    if not (folder / MANIFEST).is_file():
        hint = f"flashdmd prepare-data {folder} --out DIR converts captioned pictures to such data"
        raise InputError(f"--data {folder}: has no {MANIFEST}, so it is not a result of prepare-data", hint=hint)
    manifest = read_manifest(folder)
    if manifest.kind != "data":
        raise InputError(f"--data {folder}: is a {manifest.kind} folder", hint="flashdmd prepare-data writes data")
    cache = manifest.collection.cache if manifest.collection is not None else None
    # Embeddings and latents of other encoders do not fit this teacher.
    fits = cache is not None and teacher is not None and cache.encoders == encoders_hash(teacher)
    cached = cache.what if cache is not None and fits else ()
    files = [record.model_dump() for record in manifest.files]

    def tick(done: int, total: int) -> None:
        if reporter is not None and not done:
            reporter.phase(f"reading the headers of {total} files of {folder} for an index, once", "file")
        if reporter is not None:
            reporter.progress(done, total)

    return ShardDataset(folder, files, cached, sized, lambda: _spare(folder / MANIFEST), tick), manifest


def _spare(manifest: Path) -> Path | None:
    """A folder for the index of data that cannot be written to, in huggingface_hub's cache of assets; None if there is
    no such cache. Its name is the hash of the manifest, so it belongs to these files alone."""
    from huggingface_hub import cached_assets_path

    from flashdmd_cli.runs.files import sha256_file

    try:
        return cached_assets_path("flashdmd", namespace="index", subfolder=sha256_file(manifest)[:32])
    except (OSError, ValueError, RuntimeError):
        return None


def cache_in_use(shards: ShardDataset, manifest: Manifest, data: Path) -> str | None:
    """A message on whether the cache of `data` is used; None if it has none."""
    if manifest.collection is None or manifest.collection.cache is None:
        return None
    if shards.caches.latents or shards.caches.text:
        return f"reading {' and '.join(manifest.collection.cache.what)} from the cache of {data}"
    return f"the cache of {data} was made by other encoders than the teacher's, so it is not used"


def check_pictures(shards: ShardDataset, recipe: Recipe, resolution: int, data: Path) -> None:
    """Raise `InputError` if the pictures have the wrong size, or are missing though the recipe has a GAN."""
    side = shards.picture_shape[-2:]
    if side == (0, 0):
        if recipe.gan.kind != "none":
            raise InputError(
                f"--data {data}: contains only prompts, but gan.kind {recipe.gan.kind} needs real pictures",
                hint="train without a GAN (--set gan.kind=none), or prepare data with pictures",
            )
    elif side != (resolution, resolution):
        raise InputError(
            f"--data {data}: pictures are {'x'.join(map(str, side))} pixels, but the teacher "
            f"draws {resolution}x{resolution}",
            hint=f"flashdmd prepare-data SOURCE --resolution {resolution} makes data of that size",
        )
