"""A whole distillation on disk: check the folder, load, train, write the student and its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.drawing import beyond_words
from flashdmd_cli.cli.kinds import is_shapes
from flashdmd_cli.cli.output import Progress
from flashdmd_cli.cli.run_folder import begin, cache_in_use, open_data, place_of_run
from flashdmd_cli.cli.sam_source import with_sam
from flashdmd_cli.cli.teachers import find_source, teacher_record
from flashdmd_cli.cli.training_run import check_pictures, load, settle, watch_run, write_checkpoint

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe import Recipe

SHOWN = ("dm", "fake", "gan", "discriminator")


def run_distill(recipe: Recipe, data: Path, out: Path, observer: Progress) -> Path:
    """Train, or go on training, until the recipe's iterations are done, then write `out/student` and the manifest.

    Raises `Interrupted` when a signal came before the end; the state is saved then.
    """
    teacher = find_source(recipe.teacher, recipe.model)
    shards, manifest = open_data(data, teacher, recipe.model.micro_conditioning == "data")
    placed = with_sam(recipe)
    # Only a run that has all it needs makes a folder.
    record = teacher_record(recipe.teacher, teacher)
    if not begin("distill", recipe, record, {"--data": [data]}, out, observer.phase):
        return out
    place = place_of_run(recipe, out, observer.output.say)
    if told := cache_in_use(shards, manifest, data):
        observer.phase(told)
    observer.phase(f"loading the teacher {recipe.teacher}")
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.training.distill import distill

    family = load(SDXLFamily, teacher, place)
    check_pictures(shards, recipe, family.resolution, data)
    captions = [shards.sample(i).caption for i in range(min(8, len(shards)))]
    if is_shapes(family.source) and (told := beyond_words(captions)):
        observer.phase(told)
    # Before its first update the student is the teacher, sampled as a student is.
    watch = watch_run(recipe, family, captions, family.teacher, out, observer, SHOWN)
    observer.phase(f"distilling into {recipe.grid.steps} steps, {recipe.train.iterations} iterations")
    stop = observer.output.stop
    state = distill(placed, family, shards, out, watch, stop)
    settle(recipe, state, stop, out)
    write_checkpoint("distill", recipe, family, state, data, out)
    return out
