"""The folder of a run: checks whether it can be resumed with the given recipe and inputs, or is finished."""

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
    "train.keep_states", "train.async_save", "model.device", "model.checkpointing", "model.sharding",
}  # fmt: skip
"""Recipe keys that may change when a run is resumed, because they do not change the result of an iteration."""


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
    """Start or resume a run in `out`; False if `out` contains the finished result already, which is not changed.

    `inputs`: flag -> the files and folders that it implies, the named one first. Raises `UsageError` if recipe or
    inputs differ from those that the run in `out` was started with, or if another process writes there, and
    `InputError` for another teacher, which is compared by content, not by name.
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
        say(f"resuming from {state.name} of {out}")
    return True


def teacher_of(out: Path) -> TeacherRecord:
    """The teacher of the run in `out`, as recorded by `begin`."""
    from flashdmd_cli.runs.teacher import TeacherRecord

    return TeacherRecord.model_validate_json((out / TEACHER).read_text(encoding="utf-8"))


def _note(out: Path, flag: str) -> Path:
    """File with the digest of the inputs of a flag."""
    return out / f"{flag.strip('-')}.sha256"


def _agree(
    recipe: Recipe | RewardRecipe,
    teacher: TeacherRecord,
    inputs: Mapping[str, Sequence[Path]],
    digests: Mapping[str, str],
    out: Path,
) -> None:
    """Raise if teacher, recipe or inputs differ from those that the run in `out` was started with.

    Without any training in `out`, all are accepted.
    """
    from flashdmd_cli.runs.device import read_note
    from flashdmd_cli.runs.recipe import load_recipe, load_reward_recipe
    from flashdmd_cli.runs.teacher import difference

    path = out / RECIPE
    free = FREE_TO_CHANGE
    if isinstance(recipe, RewardRecipe) and recipe.optim.decay:
        free = free - {"train.iterations"}  # the learning-rate decay depends on it
    begun = has_begun(out)
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
        # `auto` keeps the recorded number format; an explicit one has to be equal to the recorded one.
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


def has_begun(out: Path) -> bool:
    """Whether `out` contains a saved state or a finished result."""
    from flashdmd_cli.runs.checkpoint import latest_state
    from flashdmd_cli.runs.manifest import MANIFEST

    return (out / MANIFEST).is_file() or latest_state(out / "state") is not None


def place_of_run(recipe: Recipe | RewardRecipe, out: Path, say: Callable[[str], None]) -> Place:
    """Device and number format of the run in `out`, after `begin`: the recorded ones, else those of the recipe.

    A resumed run always keeps its number format, and its device if it is available and the recipe has `auto`. The
    result is reported to `say`, also if the recipe would now resolve to something else.
    """
    from flashdmd_cli.runs.device import Place, available_devices, read_note, resolve, write_note

    place, note = resolve(recipe.model.device, recipe.model.precision), read_note(out)
    if not has_begun(out) or note is None:
        write_note(out, place)
    elif note != place:
        keeps_device = recipe.model.device == "auto" and note.device in available_devices()
        place = Place(note.device if keeps_device else place.device, note.precision)
        say(f"the run in {out} began on {note.device} in {note.precision}; another would be chosen here now")
    say(str(place))
    return place


def _digest(path: Path) -> str:
    """SHA-256 of a file, of a folder's manifest, or of all files of a folder without one; `absent` if none exists."""
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
    """Whether `out` contains the result of this recipe; UsageError if it has more iterations than the recipe."""
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
