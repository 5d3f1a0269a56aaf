"""The folder of a run: which recipe and inputs it was started with, whether it goes on, whether it is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.folder import claim
from flashdmd_cli.runs.recipe import Recipe, RewardRecipe

if TYPE_CHECKING:
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.teacher import TeacherRecord

RECIPE, TEACHER = "recipe.yaml", "teacher.json"
PRECISION = "model.precision"
FREE_TO_CHANGE = {
    "name", "train.iterations", "train.log_every", "train.save_every", "train.preview_every", "probe.stop_on_collapse",
    "model.device", "model.checkpointing",
}  # fmt: skip
"""Keys that a resumed run may change: they do not alter what an iteration does."""


def flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"grid": {"steps": 4}}` -> `{"grid.steps": 4}`."""
    rows: dict[str, Any] = {}
    for key, value in recipe.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows


def begin(
    kind: str,
    recipe: Recipe | RewardRecipe,
    teacher: TeacherRecord,
    inputs: Mapping[str, Sequence[Path]],
    out: Path,
    say: Callable[[str], None],
) -> bool:
    """Make `out` the folder of this run, new or to be continued; False when it holds the finished result already.

    `inputs` are what each flag brings, what it names first. Raises `UsageError` for a recipe or an input that would
    make another run of the one in `out`, or while another process writes there, and `InputError` for another teacher,
    which is known by its content, not by how it was typed. A finished result is not touched.
    """
    from flashdmd_cli.runs.checkpoint import latest_state
    from flashdmd_cli.runs.files import write_text_atomically
    from flashdmd_cli.runs.recipe import dump_recipe

    claim(out, kind)
    digests = {flag: "-".join(map(_digest, paths)) for flag, paths in inputs.items()}
    _agree(recipe, teacher, inputs, digests, out)
    if _finished(recipe, out):
        say(f"{out} holds the finished result of this recipe already")
        return False
    write_text_atomically(out / RECIPE, dump_recipe(recipe))
    write_text_atomically(out / TEACHER, teacher.model_dump_json(indent=2) + "\n")
    for flag, digest in digests.items():
        write_text_atomically(_note(out, flag), digest + "\n")
    if (state := latest_state(out / "state")) is not None:
        say(f"going on from {state.name} of {out}")
    return True


def teacher_of(out: Path) -> TeacherRecord:
    """The teacher that the run in `out` goes on with, as `begin` noted it."""
    from flashdmd_cli.runs.teacher import TeacherRecord

    return TeacherRecord.model_validate_json((out / TEACHER).read_text(encoding="utf-8"))


def _note(out: Path, flag: str) -> Path:
    """Where a run keeps the digest of what a flag brought."""
    return out / f"{flag.strip('-')}.sha256"


def _agree(
    recipe: Recipe | RewardRecipe,
    teacher: TeacherRecord,
    inputs: Mapping[str, Sequence[Path]],
    digests: Mapping[str, str],
    out: Path,
) -> None:
    """Hold recipe and inputs against those that the run in `out` was started with.

    A folder in which nothing was trained yet takes any.
    """
    from flashdmd_cli.runs.device import read_note
    from flashdmd_cli.runs.recipe import load_recipe, load_reward_recipe
    from flashdmd_cli.runs.teacher import difference

    path = out / RECIPE
    free = FREE_TO_CHANGE
    if isinstance(recipe, RewardRecipe) and recipe.optim.decay:
        free = free - {"train.iterations"}  # the learning rate falls towards that number
    begun = _has_begun(out)
    if begun and (out / TEACHER).is_file():
        free = free | {"teacher"}
        if differs := difference(before := teacher_of(out), teacher):
            raise InputError(
                f"--teacher {teacher.id}: is not the teacher that the run in {out} was started with "
                f"({before.path or before.id}): other {differs}",
                hint="choose another --out, or name the old teacher to resume",
            )
    if begun and path.is_file():
        read = load_recipe if isinstance(recipe, Recipe) else load_reward_recipe
        old, now = (flat(r.model_dump(mode="json")) for r in (read(path), recipe))
        # `auto` goes on with what the run began with; a format that is named is held against what `auto` came to.
        began = read_note(out)
        if now[PRECISION] == "auto":
            old[PRECISION] = "auto"
        elif began is not None:
            old[PRECISION] = began.precision
        for key, value in now.items():
            if old.get(key) != value and key not in free:
                raise UsageError(
                    f"{key}: is {value}, but the run in {out} was started with {old.get(key)}",
                    hint="choose another --out, or the old value to resume",
                )
    for flag, digest in digests.items():
        note = _note(out, flag)
        if begun and note.is_file() and note.read_text().strip() != digest:
            raise UsageError(
                f"{flag} {inputs[flag][0]}: is not what the run in {out} was started with",
                hint="name what it started with, whole, or choose another --out",
            )


def _has_begun(out: Path) -> bool:
    """Whether something was trained in `out` already."""
    from flashdmd_cli.runs.checkpoint import latest_state
    from flashdmd_cli.runs.manifest import MANIFEST

    return (out / MANIFEST).is_file() or latest_state(out / "state") is not None


def place_of_run(recipe: Recipe | RewardRecipe, out: Path, say: Callable[[str], None]) -> Place:
    """Where the run in `out`, for which `begin` said yes, trains: as it began, else as the recipe resolves here.

    Says it in a line, and in another where a run that goes on would resolve otherwise now. A number format is always
    kept; a device where this machine has it and the recipe names no other.
    """
    from flashdmd_cli.runs.device import Place, available_devices, read_note, resolve, write_note

    table = recipe.model
    place, note = resolve(table.device, table.precision), read_note(out)
    if not _has_begun(out) or note is None:
        write_note(out, place)
    elif note != place:
        kept = table.device == "auto" and note.device in available_devices()
        place = Place(note.device if kept else place.device, note.precision)
        say(f"the run in {out} began on {note.device} in {note.precision}; another would be chosen here now")
    say(str(place))
    return place


def _digest(path: Path) -> str:
    """SHA-256 of a file, of a folder's manifest, or of all files of a folder without one; `absent` where none is."""
    from flashdmd_cli.runs.files import sha256_file
    from flashdmd_cli.runs.manifest import MANIFEST
    from flashdmd_cli.runs.teacher import sha256_remembered

    if (path / MANIFEST).is_file():
        return sha256_file(path / MANIFEST)
    if not path.is_dir():
        return sha256_file(path) if path.is_file() else "absent"
    files = sorted(each for each in path.rglob("*") if each.is_file())
    rows = "".join(f"{each.relative_to(path)} {sha256_remembered(each)}\n" for each in files)
    return hashlib.sha256(rows.encode()).hexdigest()


def _finished(recipe: Recipe | RewardRecipe, out: Path) -> bool:
    """Whether `out` already holds the result of this recipe; UsageError when the run went further than asked."""
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
