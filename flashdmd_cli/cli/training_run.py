"""What the training commands share: finding and loading networks, watching a run, ending it, writing its checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.kinds import SHAPES
from flashdmd_cli.cli.output import Progress
from flashdmd_cli.cli.preview import Preview
from flashdmd_cli.cli.sources import SDXL_ID
from flashdmd_cli.runs.errors import InputError, Interrupted, NumericalError

if TYPE_CHECKING:
    from flashdmd_cli.data.shards import ShardDataset
    from flashdmd_cli.models.base import View
    from flashdmd_cli.models.layout import Source
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.manifest import Kind
    from flashdmd_cli.runs.recipe import Recipe
    from flashdmd_cli.runs.signals import StopFlag
    from flashdmd_cli.training.loop import Watch
    from flashdmd_cli.training.state import State

LICENSES = {SHAPES: "Apache-2.0", SDXL_ID: "openrail++"}


def check_pictures(shards: ShardDataset, recipe: Recipe, resolution: int, data: Path) -> None:
    """InputError when the pictures are not what the run needs; prompts alone do where there is no GAN."""
    side = shards.picture_shape[-2:]
    if side == (0, 0):
        if recipe.gan.kind != "none":
            raise InputError(
                f"--data {data}: holds prompts alone, but gan.kind {recipe.gan.kind} needs real pictures",
                hint="--set gan.kind=none trains without, or prepare data with pictures",
            )
    elif side != (resolution, resolution):
        raise InputError(
            f"--data {data}: pictures are {'x'.join(map(str, side))} pixels, but the teacher "
            f"draws {resolution}x{resolution}",
            hint=f"flashdmd prepare-data SOURCE --resolution {resolution} makes data of that size",
        )


def watch_run(
    recipe: Recipe, family: SDXLFamily, captions: Sequence[str], start: View, out: Path, observer: Progress,
    shown: Sequence[str],
) -> Watch:  # fmt: skip
    """Progress with the figures named in `shown`, warnings, previews beside `start`, and the page around them."""
    from flashdmd_cli.cli.run_page import write_run_page
    from flashdmd_cli.training.loop import Watch

    draw = Preview(recipe, family, captions, out, start)

    def preview(student: View, iteration: int, warnings: Sequence[str]) -> None:
        if iteration == 0:
            observer.output.say("drawing what teacher and student show before training")
        draw(student, iteration)
        write_run_page(recipe, out, iteration, warnings)

    def warn(text: str) -> None:
        observer.output.say(f"warning: {text}")

    def progress(iteration: int, figures: dict[str, float]) -> None:
        told = {name: figures[name] for name in shown if name in figures}
        observer.progress(iteration, recipe.train.iterations, told)

    return Watch(progress, warn, preview)


def settle(recipe: Recipe, state: State, stop: StopFlag, out: Path) -> None:
    """Raise for a run that ended early: `Interrupted` after a signal, `NumericalError` after a collapse.

    A collapse has left its page. That of an interrupted run tells how far it came, with the pictures of the last
    preview, for drawing takes time.
    """
    from flashdmd_cli.cli.run_page import write_run_page
    from flashdmd_cli.training.collapse import remedy

    done, whole = state.iteration, recipe.train.iterations
    collapsed = recipe.probe.stop_on_collapse and "collapsed" in state.probe
    if stop.requested is not None and not collapsed:
        if not done:
            raise Interrupted("interrupted before iteration 1: nothing is trained yet", signal_number=stop.requested)
        write_run_page(recipe, out, done, state.probe.get("warnings", ()))
        raise Interrupted(
            f"interrupted at iteration {done} of {whole}; the state is saved in {out}",
            hint="run the same command again to resume",
            signal_number=stop.requested,
        )
    if not collapsed:
        return
    told = state.probe["collapsed"]
    moved = ", ".join(f"{name} {change:+.0%}" for name, change in told["changes"].items())
    raise NumericalError(
        f"--stop-on-collapse: stopped at iteration {done} of {whole}, collapsed at {told['iteration']}: {moved}; the "
        f"state is saved in {out}",
        hint=f"{remedy(recipe)} in another --out; without --stop-on-collapse the same command goes on",
    )


def load(kind: type[SDXLFamily], source: Path | Source, place: Place | None = None) -> SDXLFamily:
    """The family behind a teacher, at `place` (default: the accelerator if there is one, in float32).

    InputError when it cannot be read.
    """
    from safetensors import SafetensorError

    from flashdmd_cli.runs.device import resolve

    place = place or resolve(precision="fp32")
    hush()
    try:
        family = kind.load(source, place.precision)
    except (OSError, ValueError, SafetensorError) as error:
        hint = getattr(error, "hint", "")
        where = getattr(source, "weights", source)
        raise InputError(f"--teacher {where}: {str(error).splitlines()[0]}", hint=hint) from error
    return family.to(place.device)


def hush() -> None:
    """Keep the libraries' own bars and advice off stderr; what a person needs to know is said by the commands."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Tell a failed writing of weights in one line, whichever library failed."""
    from safetensors import SafetensorError

    from flashdmd_cli.runs.files import as_readable_as_others, write_error, writing

    with writing(folder):
        try:
            yield
            as_readable_as_others(folder)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise write_error(folder, int(number[1]) if number else 0, str(error)) from error


def write_checkpoint(
    kind: Kind, recipe: Recipe, family: SDXLFamily, state: State, data: Path, out: Path, parents: Sequence[Path] = ()
) -> None:
    """`student/` as a plain diffusers network (adapters merged), then the manifest; `parents` beside the data."""
    from flashdmd_cli.cli.run_folder import teacher_of
    from flashdmd_cli.cli.run_page import write_run_page
    from flashdmd_cli.runs.manifest import (
        GridRecord,
        Manifest,
        Updates,
        Weights,
        hardware,
        parent_record,
        write_manifest,
    )  # fmt: skip

    with saving(out / "student"):
        family.save_network(state.shipped.merged(), out / "student")
    write_run_page(recipe, out, state.iteration, state.probe.get("warnings", ()))
    grid, parent, teacher = family.grid(recipe.grid.steps), parent_record(data, out), teacher_of(out)
    write_manifest(
        out,
        Manifest(
            kind=kind,
            family=recipe.family,
            grid=GridRecord(scheduler=grid.scheduler, config=grid.config),
            step=state.iteration,
            images_seen=state.images_seen,
            updates=Updates(**state.updates),
            teacher=teacher,
            parents=[*(parent_record(each, out) for each in parents), parent],
            weights=Weights(form="full", dtype="float32", average="raw" if state.average is None else "ema"),
            recipe=recipe.model_dump(mode="json"),
            hardware=hardware(family.device.type, family.precision),
            data=parent.sha256,
            seed=recipe.train.seed,
            wall_seconds=state.seconds,
            license=LICENSES.get(teacher.hub or teacher.id),
            warnings=state.probe.get("warnings", []),
        ),
    )
