"""What a teacher is read from: where its weights are, the configurations of a single file, and perhaps another VAE.

A teacher is named as the embedded one, a path, or an id on the hub; what is on the hub alone is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.registry import FAMILIES, family_at, family_of_files
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.hub import Choose, Wanted, fetch, files_below, network_weights, parse_id, pipeline_files
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.teacher import TeacherRecord, difference, record
from flashdmd_cli.workflows.inputs.kinds import SHAPES, check_teacher, is_exported

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


def find_source(teacher: str, parts: Parts | Model | None = None, reporter: Reporter | None = None) -> Source:
    """What a teacher is read from, downloaded where it is not here, which `reporter` hears of.

    InputError for what is missing, or for a student in its place.
    """
    place = find_teacher(teacher, reporter=reporter)
    if place.is_dir() and is_exported(place):
        raise InputError(
            f"--teacher {teacher}: is a student that flashdmd export wrote", hint="name the teacher it was made from"
        )
    return with_parts(place, parts or Parts(), reporter)


def teacher_record(name: str, teacher: Source | Path) -> TeacherRecord:
    """What is written down of the teacher that was typed as `name`, and of what is read beside it."""
    source, asked = teacher if isinstance(teacher, Source) else Source(teacher), hub_id(name)
    beside = {"--teacher-config": source.config, "--vae": source.vae}
    facts = family_at(source.folder)
    hub = asked[0] if asked is not None else None
    return record(name, source.weights, facts.networks, facts.settings, hub, beside)


def find_source_again(
    before: TeacherRecord,
    model: Model,
    of: str,
    parts: Parts | None = None,
    reporter: Reporter | None = None,
) -> Source:
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
            found = with_parts(find_teacher(place, f"{of}: its teacher", hint, reporter), model, reporter)
        except InputError as error:
            problem = problem or error
            continue
        if not (differs := difference(before, teacher_record(place, found))):
            return with_parts(found.weights, (parts or Parts()).before(model), reporter)
        problem = InputError(
            f"{of}: its teacher {place} is another one now: {differs} {'differ' if ' and ' in differs else 'differs'}",
            hint="put back the one that it was distilled from, or distil anew",
        )
    assert problem is not None
    raise problem


def with_parts(place: Path, parts: Parts | Model, reporter: Reporter | None = None) -> Source:
    """A teacher's folder or file with the VAE and the configurations that go with it."""
    source = Source(place)
    if place.is_file():
        source = replace(source, config=find_config(parts.teacher_config or SDXL.hub_id, reporter))
    return source if parts.vae is None else replace(source, vae=find_vae(parts.vae, family_at(source.folder), reporter))


def find_config(name: str, reporter: Reporter | None = None) -> Path:
    """The folder with configurations and tokenizers for a single-file teacher; of a hub id no weights are fetched."""
    said = f"--teacher-config {name}"
    if name == SHAPES:
        return find_teacher(name, "--teacher-config")
    folder = expanded(name)
    if not folder.exists() and (asked := parse_id(name)) is not None:
        folder = _fetch(said, asked, _configurations, "--teacher-config PATH takes a local folder", reporter)
    if lacking := _configurations(files_below(folder))[1]:
        raise InputError(
            f"{said}: has no {lacking[0]}",
            hint="a folder or hub id of an SDXL pipeline; its weights may be left out",
        )
    return folder


def find_vae(name: str, facts: Facts, reporter: Reporter | None = None) -> Path:
    """The folder or file of an autoencoder of a family; InputError when there is none."""
    said, place = f"--vae {name}", expanded(name)
    if not place.exists():
        if (asked := parse_id(name)) is None:
            raise InputError(f"{said}: no such file or folder", hint="a folder, a .safetensors file or a hub id")
        place = _fetch(said, asked, _autoencoder, "--vae PATH takes a local folder or file", reporter)
    try:
        facts.module.refuse_vae(place)
    except Unfit as error:
        raise InputError(f"{said}: {error}", hint=error.hint) from None
    return place


def license_of(teacher: TeacherRecord) -> str | None:
    """The licence of a teacher, and so of what is distilled from it, where it is known."""
    known = {SHAPES: "Apache-2.0"}
    for facts in FAMILIES.values():
        known |= facts.licenses
    return known.get(teacher.hub or teacher.id)


def _pipeline(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a repository's files, those of its pipeline, float16 first; and what is lacking."""
    names = list(names)
    facts = family_of_files(names)
    return pipeline_files(names, facts.networks, facts.settings, half_first=True)


def _configurations(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a repository's files, a pipeline's configurations and vocabularies; and those that are lacking."""
    small = [name for name in names if name.endswith((".json", ".txt")) and ".index." not in name]
    needed = ["model_index.json", *(f"{part}/config.json" for part in SDXL.networks)]
    lacking = [name for name in needed if name not in small]
    folders = {name.split("/")[0] for name in small if "/" in name}
    return small, lacking + [f"{part}/" for part in SDXL.settings if part not in folders]


def _autoencoder(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a repository's files, the configuration and one set of weights of its autoencoder; and what is lacking."""
    names = list(names)
    root = "" if "config.json" in names else "vae/"
    inside = {name.removeprefix(root) for name in names if name.startswith(root)}
    weights = network_weights(inside, half_first=False)
    lacking = [f"{root}config.json"] if "config.json" not in inside else []
    chosen = [f"{root}{name}" for name in ("config.json", *weights)]
    return chosen, lacking + ([] if weights else [f"{root}diffusion_pytorch_model.safetensors"])


def _fetch(said: str, asked: tuple[str, str | None], choose: Choose, hint: str, reporter: Reporter | None) -> Path:
    """The snapshot of a hub repository with the files that `choose` names; fetched where they are not here."""
    reporter = reporter or SilentReporter()
    return fetch(Wanted(said, *asked, hint=hint, or_path=True), choose, reporter.say, reporter.draws_bars)


def hub_id(teacher: str) -> tuple[str, str | None] | None:
    """(`owner/name`, revision) of a teacher on the hub; None for one that ships, or that is a path here."""
    name, _, revision = teacher.partition("@")
    if name in FAMILIES and (revision or name == teacher):
        return parse_id(FAMILIES[name].hub_id + teacher.removeprefix(name))
    return None if teacher == SHAPES or expanded(teacher).exists() else parse_id(teacher)


def find_teacher(name: str, flag: str = "--teacher", hint: str | None = None, reporter: Reporter | None = None) -> Path:
    """The pipeline folder or checkpoint file behind `shapes-sdxl`, `sdxl`, a hub id or a path.

    InputError when it cannot be had, or is something else.

    What is on the hub and not on this machine is downloaded. `hint` takes the place of the advice to name another
    teacher with `flag`.
    """
    if name == SHAPES:
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset(SHAPES)
        except FileNotFoundError as error:
            raise InputError(f"{flag} {SHAPES}: {error}") from None
    if (asked := hub_id(name)) is not None:
        local = (
            hint
            if hint is not None
            else f"{flag} PATH takes a local pipeline folder, {flag} {SHAPES} is the small one that ships"
        )
        known = {facts.hub_id: facts.size for facts in FAMILIES.values()}
        reporter = reporter or SilentReporter()
        wanted = Wanted(
            f"{flag} {name}", *asked, size=known.get(asked[0], ""), hint=local, or_path=asked[0] not in known
        )
        folder = fetch(wanted, _pipeline, reporter.say, reporter.draws_bars)
    elif not (folder := expanded(name)).exists():
        named = ", ".join((*FAMILIES, SHAPES))
        told = f"{flag} takes {named}, a hub id (owner/name[@revision]) or a pipeline folder or file"
        raise InputError(f"{flag} {name}: no such folder", hint=hint or told)
    check_teacher(folder, f"{flag} {name}", hint or "")
    return folder
