"""What a teacher is read from: its weights, the configurations of a single file, and perhaps another VAE."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.kinds import SHAPES, is_exported
from flashdmd_cli.cli.output import current
from flashdmd_cli.cli.sources import SDXL_ID, find_teacher, hub_id
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.models.layout import NETWORKS, SETTINGS, Source, refuse_vae
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.hub import Choose, Wanted, fetch, files_below, network_weights, parse_id
from flashdmd_cli.runs.teacher import TeacherRecord, difference, record

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe_schema import Model


@dataclass(frozen=True)
class Parts:
    """What a person named beside a teacher; a recipe's table `model` has the same two fields."""

    vae: str | None = None
    teacher_config: str | None = None

    def before(self, model: Model) -> Parts:
        """These, and where none is named those of a recipe."""
        return Parts(self.vae or model.vae, self.teacher_config or model.teacher_config)


def absolute(name: str | None) -> str | None:
    """A path here as one that holds anywhere; any other name as it is."""
    if name is None or not (place := expanded(name)).exists():
        return name
    return str(place.absolute())


def find_source(teacher: str, parts: Parts | Model | None = None) -> Source:
    """What a teacher is read from. InputError for what is missing, or for a student in its place."""
    place = find_teacher(teacher)
    if place.is_dir() and is_exported(place):
        raise InputError(
            f"--teacher {teacher}: is a student that flashdmd export wrote", hint="name the teacher it was made from"
        )
    return with_parts(place, parts or Parts())


def teacher_record(name: str, teacher: Source | Path) -> TeacherRecord:
    """What is written down of the teacher that was typed as `name`, and of what is read beside it."""
    source, asked = teacher if isinstance(teacher, Source) else Source(teacher), hub_id(name)
    beside = {"--teacher-config": source.config, "--vae": source.vae}
    return record(name, source.weights, asked[0] if asked is not None else None, beside)


def find_source_again(before: TeacherRecord, model: Model, of: str, parts: Parts | None = None) -> Source:
    """The teacher of a result, from whatever directory; InputError when it is gone, or another one lies in its place.

    `of` is what a line about it begins with, `--from runs/student`; `model` is the result's recipe. `parts` replace
    what that names, after the comparison.
    """
    if before.hub is not None:
        places = [f"{before.hub}@{before.revision}"]
    elif before.path is not None:
        # What was typed is tried too where it leads somewhere: run and teacher may have moved together.
        places = [before.path, *([before.id] if expanded(before.id).exists() else [])]
    else:
        places = [before.id]
    hint = f"put it, or a link to it, at {before.path}" if before.path else ""
    problem: InputError | None = None
    for place in places:
        try:
            found = with_parts(find_teacher(place, f"{of}: its teacher", hint), model)
        except InputError as error:
            problem = problem or error
            continue
        if not (differs := difference(before, teacher_record(place, found))):
            return with_parts(found.weights, (parts or Parts()).before(model))
        problem = InputError(
            f"{of}: its teacher {place} is another one now: {differs} {'differ' if ' and ' in differs else 'differs'}",
            hint="put back the one that it was distilled from, or distil anew",
        )
    assert problem is not None
    raise problem


def with_parts(place: Path, parts: Parts | Model) -> Source:
    """A teacher's folder or file with the VAE and the configurations that go with it."""
    source = Source(place)
    if place.is_file():
        source = replace(source, config=find_config(parts.teacher_config or SDXL_ID))
    return source if parts.vae is None else replace(source, vae=find_vae(parts.vae))


def find_config(name: str) -> Path:
    """The folder with configurations and tokenizers for a single-file teacher; of a hub id no weights are fetched."""
    said = f"--teacher-config {name}"
    if name == SHAPES:
        return find_teacher(name, "--teacher-config")
    folder = expanded(name)
    if not folder.exists() and (asked := parse_id(name)) is not None:
        folder = _fetch(said, asked, _configurations, "--teacher-config PATH takes a local folder")
    if lacking := _configurations(files_below(folder))[1]:
        raise InputError(
            f"{said}: has no {lacking[0]}",
            hint="a folder or hub id of an SDXL pipeline; its weights may be left out",
        )
    return folder


def find_vae(name: str) -> Path:
    """The folder or file of an autoencoder; InputError when there is none."""
    said, place = f"--vae {name}", expanded(name)
    if not place.exists():
        if (asked := parse_id(name)) is None:
            raise InputError(f"{said}: no such file or folder", hint="a folder, a .safetensors file or a hub id")
        place = _fetch(said, asked, _autoencoder, "--vae PATH takes a local folder or file")
    try:
        refuse_vae(place)
    except Unfit as error:
        raise InputError(f"{said}: {error}", hint=error.hint) from None
    return place


def _configurations(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a repository's files, a pipeline's configurations and vocabularies; and those that are lacking."""
    small = [name for name in names if name.endswith((".json", ".txt")) and ".index." not in name]
    needed = ["model_index.json", *(f"{part}/config.json" for part in NETWORKS)]
    lacking = [name for name in needed if name not in small]
    folders = {name.split("/")[0] for name in small if "/" in name}
    return small, lacking + [f"{part}/" for part in SETTINGS if part not in folders]


def _autoencoder(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a repository's files, the configuration and one set of weights of its autoencoder; and what is lacking."""
    names = list(names)
    root = "" if "config.json" in names else "vae/"
    inside = {name.removeprefix(root) for name in names if name.startswith(root)}
    weights = network_weights(inside, half_first=False)
    lacking = [f"{root}config.json"] if "config.json" not in inside else []
    chosen = [f"{root}{name}" for name in ("config.json", *weights)]
    return chosen, lacking + ([] if weights else [f"{root}diffusion_pytorch_model.safetensors"])


def _fetch(said: str, asked: tuple[str, str | None], choose: Choose, hint: str) -> Path:
    """The snapshot of a hub repository with the files that `choose` names; fetched where they are not here."""
    output = current()
    return fetch(Wanted(said, *asked, hint=hint, or_path=True), choose, output.say, output.draws_bars)
