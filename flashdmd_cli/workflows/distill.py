"""Distillation (stage 1): check the inputs, load, train, write the student and its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import find_run
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import Manifest, read_manifest
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.resume import begin, place_of_run
from flashdmd_cli.runs.world import World
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.kinds import check_family, is_shapes
from flashdmd_cli.workflows.inputs.sam import with_sam
from flashdmd_cli.workflows.inputs.shards import cache_in_use, check_pictures, open_data
from flashdmd_cli.workflows.inputs.teachers import find_source, teacher_record
from flashdmd_cli.workflows.training import raise_if_stopped, watch_run, write_checkpoint

if TYPE_CHECKING:
    from flashdmd_cli.runs.device import Place

SHOWN = ("dm", "fake", "gan", "discriminator")
"""Metrics displayed with the progress."""


@releasing()
def distill(
    recipe: Recipe,
    data: Path | str | None,
    out: Path | str,
    *,
    reporter: Reporter | None = None,
    world: World | None = None,
) -> Manifest:
    """Start or resume training for the iterations in the recipe, then write `out/student` and the manifest.

    Reads the shards in `data`, a folder of prepare-data (None: the newest under ./runs), the teacher and the
    discriminator's encoder, which are downloaded if they are not on this machine. Writes the folder `out`; the same
    call again resumes from the newest state, or returns the manifest of the finished result. With a `world`, all its
    processes make the same call; the first writes.

    Raises `Interrupted` if a stop was requested before the end (the state is saved), `UsageError` if `out` contains
    another run, and `InputError` if an input cannot be read.
    """
    if recipe.align is not None:
        raise UsageError(f"--recipe {recipe.name}: is for alignment", hint="use it with `flashdmd align`")
    reporter, out, world = reporter or SilentReporter(), Path(out), world or World()
    world.rows(recipe.train.batch)
    shards_at = None if data is None else find_run(str(data), "data", flag="--data")  # before anything is downloaded
    with world.main_first():
        teacher = find_source(recipe.teacher, recipe.model, reporter)
        check_family(recipe, teacher)
        placed = with_sam(recipe, reporter)
    shards_at = shards_at or find_run(None, "data", flag="--data")
    if data is None:
        reporter.say(f"data: {shards_at}")
    with world.main_first():  # which builds a missing index
        shards, manifest = open_data(shards_at, teacher, recipe.model.micro_conditioning == "data", reporter)

    # The folder is created only now that all inputs are known to exist.
    def start() -> Place | None:
        record = teacher_record(recipe.teacher, teacher)
        begins = begin("distill", recipe, record, {"--data": [shards_at]}, out, reporter.phase)
        return place_of_run(recipe, out, reporter.say) if begins else None

    place = world.from_main(start)
    if place is None:
        return read_manifest(out)
    world.check(place)
    if message := cache_in_use(shards, manifest, shards_at):
        reporter.phase(message)
    reporter.phase(f"loading the teacher {recipe.teacher}")
    from flashdmd_cli.shapes.captions import beyond_words
    from flashdmd_cli.training import distill as stage1

    family = load_family(teacher, place, recipe.model.storage(place.precision))
    check_pictures(shards, recipe, family.resolution, shards_at)
    captions = [shards.sample(i).caption for i in range(min(8, len(shards)))]
    if is_shapes(family.source) and (message := beyond_words(captions)):
        reporter.phase(message)
    if shards.caches.text:
        family.release_encoders(captions)  # of which previews are drawn
    watch = watch_run(recipe, family, captions, out, reporter, SHOWN, world, [shards_at])
    reporter.phase(f"distilling into {recipe.grid.steps} steps, {recipe.train.iterations} iterations")
    state = stage1.distill(placed, family, shards, out, watch, reporter.stop, world)
    raise_if_stopped(recipe, state, reporter.stop, out)
    return write_checkpoint("distill", recipe, family, state, shards_at, out)
