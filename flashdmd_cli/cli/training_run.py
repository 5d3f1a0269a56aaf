"""What the training commands share: finding and loading networks, watching a run, ending it, writing its checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.output import Progress
from flashdmd_cli.cli.preview import Preview
from flashdmd_cli.cli.sources import SDXL_ID, SHAPES
from flashdmd_cli.runs.errors import InputError, Interrupted, NumericalError

if TYPE_CHECKING:
    from torch import nn

    from flashdmd_cli.data.shards import ShardDataset
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.manifest import Kind
    from flashdmd_cli.runs.recipe import Recipe
    from flashdmd_cli.runs.signals import StopFlag
    from flashdmd_cli.training.loop import Watch
    from flashdmd_cli.training.state import State

SAM_FILES = {
    "vit_b": ("sam_vit_b_01ec64.pth", "375 MB"),
    "vit_l": ("sam_vit_l_0b3195.pth", "1.2 GB"),
    "vit_h": ("sam_vit_h_4b8939.pth", "2.6 GB"),
}
LICENSES = {SHAPES: "Apache-2.0", "sdxl": "openrail++", SDXL_ID: "openrail++"}


def find_sam(recipe: Recipe) -> str | Path:
    """What the discriminator's encoder is loaded from; InputError when its weights are not on this machine."""
    sam = recipe.gan.sam
    if recipe.gan.kind != "pixel":
        return sam
    if sam == "embedded":
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset("shapes-sam")
        except FileNotFoundError as error:
            raise InputError(f"gan.sam: {error}") from None
    if sam in SAM_FILES and not Path(sam).exists():
        name, size = SAM_FILES[sam]
        home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
        if not (home / "hub" / "checkpoints" / name).is_file():
            raise InputError(
                f"gan.sam: {name} ({size}) of segment-anything is not on this machine",
                hint="--set gan.sam=PATH takes a local file",
            )
    elif sam not in SAM_FILES and not Path(sam).exists():
        raise InputError(f"gan.sam: no file {sam}", hint=f"a path, embedded, or one of {', '.join(SAM_FILES)}")
    return sam


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
            hint="prepare the data at the teacher's resolution",
        )


def watch_run(
    recipe: Recipe, family: SDXLFamily, captions: Sequence[str], start: nn.Module, out: Path, observer: Progress,
    shown: Sequence[str],
) -> Watch:  # fmt: skip
    """Progress with the figures named in `shown`, warnings, previews beside `start`, and the page around them."""
    from flashdmd_cli.cli.run_page import write_run_page
    from flashdmd_cli.training.loop import Watch

    draw = Preview(recipe, family, captions, out, start)

    def preview(student: nn.Module, iteration: int, warnings: Sequence[str]) -> None:
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
    if done >= whole and not collapsed:
        return
    if stop.requested is not None and not collapsed:
        write_run_page(recipe, out, done, state.probe.get("warnings", ()))
        raise Interrupted(
            f"interrupted at iteration {done} of {whole}; the state is saved in {out}",
            hint="run the same command again to resume",
            signal_number=stop.requested,
        )
    told = state.probe["collapsed"]
    moved = ", ".join(f"{name} {change:+.0%}" for name, change in told["changes"].items())
    raise NumericalError(
        f"--stop-on-collapse: stopped at iteration {done} of {whole}, collapsed at {told['iteration']}: {moved}; the "
        f"state is saved in {out}",
        hint=f"{remedy(recipe)} in another --out; without --stop-on-collapse the same command goes on",
    )


def load(kind: type[SDXLFamily], folder: Path, place: Place | None = None) -> SDXLFamily:
    """The family behind a pipeline folder, at `place` (default: the accelerator if there is one, in float32).

    InputError when it cannot be read.
    """
    from safetensors import SafetensorError

    from flashdmd_cli.runs.device import resolve

    place = place or resolve(precision="fp32")
    hush()
    try:
        family = kind.load(folder, place.precision)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"--teacher {folder}: cannot be read: {str(error).splitlines()[0]}") from error
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
    from flashdmd_cli.cli.run_page import write_run_page
    from flashdmd_cli.runs.manifest import (
        GridRecord,
        Manifest,
        TeacherRecord,
        Updates,
        Weights,
        hardware,
        parent_record,
        write_manifest,
    )

    with saving(out / "student"):
        family.save_network(state.shipped_student(), out / "student")
    write_run_page(recipe, out, state.iteration, state.probe.get("warnings", ()))
    grid, parent = family.grid(recipe.grid.steps), parent_record(data, out)
    write_manifest(
        out,
        Manifest(
            kind=kind,
            family=recipe.family,
            grid=GridRecord(scheduler=grid.scheduler, config=grid.config),
            step=state.iteration,
            images_seen=state.images_seen,
            updates=Updates(**state.updates),
            teacher=TeacherRecord(id=recipe.teacher, hash=family.content_hash()),
            parents=[*(parent_record(each, out) for each in parents), parent],
            weights=Weights(form="full", dtype="float32", average="raw" if state.average is None else "ema"),
            recipe=recipe.model_dump(mode="json"),
            hardware=hardware(family.device.type, family.precision),
            data=parent.sha256,
            seed=recipe.train.seed,
            wall_seconds=state.seconds,
            license=LICENSES.get(recipe.teacher),
            warnings=state.probe.get("warnings", []),
        ),
    )
