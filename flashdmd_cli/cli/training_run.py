"""A whole distillation run on disk: check the folder, load, train, preview, write the student and its manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.cli.output import Progress
from flashdmd_cli.cli.prepare_caches import encoders_hash
from flashdmd_cli.cli.sources import SDXL_ID, SHAPES, find_teacher
from flashdmd_cli.runs.errors import InputError, Interrupted, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flashdmd_cli.data.shards import ShardDataset
    from flashdmd_cli.evaluation.generate import Sampler
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.runs.manifest import Manifest
    from flashdmd_cli.runs.recipe import Recipe
    from flashdmd_cli.training.state import State

RECIPE, DATA = "recipe.yaml", "data.sha256"
FREE_TO_CHANGE = {"name", "train.iterations", "train.log_every", "train.save_every", "train.preview_every"}
"""Keys that a resumed run may change: they do not alter what an iteration does."""
SHOWN = ("dm", "fake", "gan", "discriminator")
SAM_FILES = {
    "vit_b": ("sam_vit_b_01ec64.pth", "375 MB"),
    "vit_l": ("sam_vit_l_0b3195.pth", "1.2 GB"),
    "vit_h": ("sam_vit_h_4b8939.pth", "2.6 GB"),
}
LICENSES = {SHAPES: "Apache-2.0", "sdxl": "openrail++", SDXL_ID: "openrail++"}


def flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"grid": {"steps": 4}}` -> `{"grid.steps": 4}`."""
    rows: dict[str, Any] = {}
    for key, value in recipe.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows


def agree(recipe: Recipe, data: Path, out: Path) -> None:
    """Hold recipe and data against those that the run in `out` was started with, and note them there.

    Raises `UsageError` for a key, or data, that would make another run of it.
    """
    from flashdmd_cli.runs.files import write_text_atomically
    from flashdmd_cli.runs.manifest import MANIFEST, sha256_file
    from flashdmd_cli.runs.recipe import dump_recipe, load_recipe

    path = out / RECIPE
    if path.is_file():
        before, now = (flat(r.model_dump(mode="json")) for r in (load_recipe(path), recipe))
        for key, value in now.items():
            if before[key] != value and key not in FREE_TO_CHANGE:
                raise UsageError(
                    f"{key}: is {value}, but the run in {out} was started with {before[key]}",
                    hint="choose another --out, or the old value to resume",
                )
    note, digest = out / DATA, sha256_file(data / MANIFEST)
    if note.is_file() and note.read_text().strip() != digest:
        raise UsageError(
            f"--data {data}: is not the data that the run in {out} was started with",
            hint="name the folder it started with, or choose another --out",
        )
    write_text_atomically(path, dump_recipe(recipe))
    write_text_atomically(note, digest + "\n")


def finished(recipe: Recipe, out: Path) -> bool:
    """Whether `out` already holds the student of this recipe; UsageError when the run went further than asked."""
    from flashdmd_cli.runs.manifest import MANIFEST, read_manifest

    if not (out / MANIFEST).is_file():
        return False
    step = read_manifest(out).step
    if step > recipe.train.iterations:
        raise UsageError(
            f"--iterations {recipe.train.iterations}: the run in {out} has {step} already", hint="choose another --out"
        )
    if step == recipe.train.iterations:
        return True
    (out / MANIFEST).unlink()
    return False


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


def open_data(folder: Path, teacher: Path | None = None) -> tuple[ShardDataset, Manifest]:
    """The shards of a data folder, every file held against its manifest; with the caches that `teacher` made."""
    from flashdmd_cli.data.shards import ShardDataset
    from flashdmd_cli.runs.manifest import read_manifest

    manifest = read_manifest(folder)
    if manifest.kind != "data":
        raise InputError(f"--data {folder}: is a {manifest.kind} folder", hint="flashdmd prepare-data writes data")
    cache = manifest.collection.cache if manifest.collection is not None else None
    # A cache of other encoders would train a student on what its teacher never says.
    fits = cache is not None and teacher is not None and cache.encoders == encoders_hash(teacher)
    cached = cache.what if cache is not None and fits else ()
    return ShardDataset(folder, [record.model_dump() for record in manifest.files], cached), manifest


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


@dataclass
class Preview:
    """Draws `preview.png`: teacher in 30 and 4 steps, the student before training and now, same noise and captions."""

    recipe: Recipe
    family: SDXLFamily
    captions: Sequence[str]
    out: Path
    before: dict[str, Tensor] = field(default_factory=dict)

    def _draw(self, net: nn.Module, sampler: Sampler, steps: int, guidance: float = 1.0) -> Tensor:
        from flashdmd_cli.evaluation.generate import generate

        seed = self.recipe.train.seed
        return generate(self.family, net, self.captions, seed, sampler, steps, guidance, batch=8)

    def __call__(self, student: nn.Module, iteration: int) -> None:
        from flashdmd_cli.evaluation.pictures import save_grid
        from flashdmd_cli.runs.files import writing

        steps, guidance, teacher = self.recipe.grid.steps, self.recipe.dm.guidance, self.family.teacher
        if not self.before:
            self.before = {
                "teacher\n30 steps": self._draw(teacher, "ddim", 30, guidance),
                f"teacher\n{steps} steps": self._draw(teacher, "ddim", steps, guidance),
                # Before the first update the student is the teacher, sampled as a student is.
                f"student\n{steps} steps\niteration 0": self._draw(teacher, "few_step", steps),
            }
        now = self._draw(student, "few_step", steps) if iteration else self.before[list(self.before)[-1]]
        rows = self.before | {f"student\n{steps} steps\niteration {iteration}": now}
        with writing(self.out / "preview.png"):
            save_grid(list(rows.values()), list(rows), self.out / "preview.png")


def run_distill(recipe: Recipe, data: Path, out: Path, observer: Progress) -> Path:
    """Train, or go on training, until the recipe's iterations are done, then write `out/student` and the manifest.

    Raises `Interrupted` when a signal came before the end; the state is saved then.
    """
    from flashdmd_cli.runs.signals import StopFlag

    teacher = find_teacher(recipe.teacher)
    shards, manifest = open_data(data, teacher)
    agree(recipe, data, out)
    if finished(recipe, out):
        observer.phase(f"{out} holds the finished student of this recipe already")
        return out
    sam = find_sam(recipe)
    if manifest.collection is not None and (cache := manifest.collection.cache):
        used = shards.caches.latents or shards.caches.text
        how = f"reading {' and '.join(cache.what)} from" if used else "not the teacher's, so it is left alone:"
        observer.phase(f"{how} the cache of {data}")
    observer.phase(f"loading the teacher {recipe.teacher}")
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.training.distill import Watch, distill

    family = load(SDXLFamily, teacher, recipe.model.precision)
    check_pictures(shards, recipe, family.resolution, data)
    captions = [shards.sample(i).caption for i in range(min(8, len(shards)))]

    def warn(text: str) -> None:
        observer.output.say(f"warning: {text}")

    def progress(iteration: int, figures: dict[str, float]) -> None:
        shown = {name: figures[name] for name in SHOWN if name in figures}
        observer.progress(iteration, recipe.train.iterations, shown)

    watch = Watch(progress, warn, Preview(recipe, family, captions, out))
    observer.phase(f"distilling into {recipe.grid.steps} steps, {recipe.train.iterations} iterations")
    with StopFlag() as stop:
        state = distill(recipe, family, sam, shards, out, watch, stop)
    if stop.requested is not None and state.iteration < recipe.train.iterations:
        raise Interrupted(
            f"interrupted at iteration {state.iteration} of {recipe.train.iterations}; the state is saved in {out}",
            hint="run the same command again to resume",
            signal_number=stop.requested,
        )
    write_checkpoint(recipe, family, state, data, out)
    return out


def load(kind: type[SDXLFamily], folder: Path, precision: str = "fp32") -> SDXLFamily:
    """The family behind a pipeline folder, on the accelerator if there is one; InputError when it cannot be read."""
    import torch
    from safetensors import SafetensorError

    hush()
    try:
        family = kind.load(folder, precision)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"--teacher {folder}: cannot be read: {str(error).splitlines()[0]}") from error
    return family.to("cuda") if torch.cuda.is_available() else family


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

    from flashdmd_cli.runs.files import write_error, writing

    with writing(folder):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise write_error(folder, int(number[1]) if number else 0, str(error)) from error


def write_checkpoint(recipe: Recipe, family: SDXLFamily, state: State, data: Path, out: Path) -> None:
    """`student/` as a plain diffusers network (adapters merged), then the manifest."""
    from flashdmd_cli.runs.manifest import (
        GridRecord,
        Manifest,
        TeacherRecord,
        Updates,
        Weights,
        parent_record,
        write_manifest,
    )

    with saving(out / "student"):
        family.save_network(state.shipped_student(), out / "student")
    grid, parent = family.grid(recipe.grid.steps), parent_record(data, out)
    write_manifest(
        out,
        Manifest(
            kind="distill",
            family=recipe.family,
            grid=GridRecord(scheduler=grid.scheduler, config=grid.config),
            step=state.iteration,
            images_seen=state.images_seen,
            updates=Updates(**state.updates),
            teacher=TeacherRecord(id=recipe.teacher, hash=family.content_hash()),
            parents=[parent],
            weights=Weights(form="full", dtype="float32", average="raw" if state.average is None else "ema"),
            recipe=recipe.model_dump(mode="json"),
            data=parent.sha256,
            seed=recipe.train.seed,
            wall_seconds=state.seconds,
            license=LICENSES.get(recipe.teacher),
            warnings=state.probe.get("warnings", []),
        ),
    )
