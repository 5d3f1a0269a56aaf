"""A whole distillation on disk: check the folder, load, train, write the student and its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.drawing import beyond_words
from flashdmd_cli.cli.output import Progress
from flashdmd_cli.cli.run_folder import begin, cache_in_use, open_data, place_of_run
from flashdmd_cli.cli.sources import find_teacher, is_shapes
from flashdmd_cli.cli.training_run import check_pictures, find_sam, load, settle, watch_run, write_checkpoint

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe import Recipe

SHOWN = ("dm", "fake", "gan", "discriminator")


def run_distill(recipe: Recipe, data: Path, out: Path, observer: Progress) -> Path:
    """Train, or go on training, until the recipe's iterations are done, then write `out/student` and the manifest.

    Raises `Interrupted` when a signal came before the end; the state is saved then.
    """
    from flashdmd_cli.runs.signals import StopFlag

    teacher = find_teacher(recipe.teacher)
    shards, manifest = open_data(data, teacher)
    sam = find_sam(recipe)
    # Only a run that has all it needs makes a folder.
    if not begin("distill", recipe, {"--data": [data]}, out, observer.phase):
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
    if is_shapes(recipe.teacher) and (told := beyond_words(captions)):
        observer.phase(told)
    # Before its first update the student is the teacher, sampled as a student is.
    watch = watch_run(recipe, family, captions, family.teacher, out, observer, SHOWN)
    observer.phase(f"distilling into {recipe.grid.steps} steps, {recipe.train.iterations} iterations")
    with StopFlag(observer.output.say) as stop:
        state = distill(recipe, family, sam, shards, out, watch, stop)
    settle(recipe, state, stop, out)
    write_checkpoint("distill", recipe, family, state, data, out)
    return out
