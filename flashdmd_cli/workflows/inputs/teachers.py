"""Finds the files of a teacher: its weights, the configurations for a single file, and a replacement VAE.

A teacher is named by `shapes-sdxl` or `shapes-sd3`, the name of a family, a path or a hub id; files that are only on
the hub are downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.files import Source, read_json
from flashdmd_cli.families.registry import FAMILIES, family_at, family_of
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import owner
from flashdmd_cli.runs.hub import INDEX, Choose, Wanted, fetch, files_below, network_weights, parse_id, pipeline_files
from flashdmd_cli.runs.manifest import MANIFEST
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.teacher import TeacherRecord, difference, record
from flashdmd_cli.workflows.inputs.kinds import EMBEDDED, SHAPES, check_teacher, is_exported

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe_schema import Model


@dataclass(frozen=True)
class Parts:
    """Options that go with `--teacher`; a recipe's section `model` has the same two fields."""

    vae: str | None = None
    teacher_config: str | None = None

    def before(self, model: Model) -> Parts:
        """These values, with those of a recipe for the ones that are None."""
        return Parts(self.vae or model.vae, self.teacher_config or model.teacher_config)


def absolute(name: str | None) -> str | None:
    """An existing path as an absolute one; any other name unchanged."""
    if name is None or not (place := expanded(name)).exists():
        return name
    return str(place.absolute())


def find_source(teacher: str, parts: Parts | Model | None = None, reporter: Reporter | None = None) -> Source:
    """The files of a teacher, downloaded if they are not on this machine (reported to `reporter`).

    Raises `InputError` if they are missing, or if it is a student.
    """
    place = find_teacher(teacher, reporter=reporter)
    if place.is_dir() and is_exported(place):
        raise InputError(
            f"--teacher {teacher}: is a student that flashdmd export wrote", hint="name the teacher it was made from"
        )
    return with_parts(place, parts or Parts(), reporter)


def teacher_record(name: str, teacher: Source | Path) -> TeacherRecord:
    """Record of a teacher for the manifest, by the given name and by hashes of its files and of its `Parts`."""
    source, asked = teacher if isinstance(teacher, Source) else Source(teacher), hub_id(name)
    beside = {"--teacher-config": source.config, "--vae": source.vae}
    facts = family_at(source.folder)
    hub = asked[0] if asked is not None else None
    return record(name, source.weights, *facts.parts(source), hub, beside)


def find_source_again(
    before: TeacherRecord,
    model: Model,
    of: str,
    parts: Parts | None = None,
    reporter: Reporter | None = None,
) -> Source:
    """The teacher of a finished result, independent of the current directory.

    Raises `InputError` if it is missing or its contents have changed. `of` is the beginning of the message, for example
    `--from runs/student`; `model` is the section of the result's recipe. `parts` replace those of `model`, after the
    comparison.
    """
    if before.hub is not None:
        places = [f"{before.hub}@{before.revision}"]
    elif before.path is not None:
        # The original name is tried too if it is an existing path, since run and teacher may have been moved together.
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
            f"{of}: its teacher {place} has changed: {differs} {'differ' if ' and ' in differs else 'differs'}",
            hint="restore the teacher that it was distilled from, or distil again",
        )
    assert problem is not None
    raise problem


def with_parts(place: Path, parts: Parts | Model, reporter: Reporter | None = None) -> Source:
    """The source of a teacher's folder or file, with the VAE and the configurations in `parts`."""
    source = Source(place)
    if place.is_file():
        facts = family_at(place)
        source = replace(source, config=find_config(parts.teacher_config or facts.hub_id, facts, reporter))
    return source if parts.vae is None else replace(source, vae=find_vae(parts.vae, family_at(source.folder), reporter))


def find_config(name: str, facts: Facts, reporter: Reporter | None = None) -> Path:
    """The folder with configurations and tokenizers for a single-file teacher of a family; weights are not
    downloaded."""
    option = f"--teacher-config {name}"
    if name in EMBEDDED:
        folder = find_teacher(name, "--teacher-config")
    else:
        folder = expanded(name)
        choose = partial(_configurations, facts)
        if not folder.exists() and (asked := parse_id(name)) is not None:
            folder = _fetch(option, asked, choose, "--teacher-config PATH takes a local folder", reporter)
        if lacking := choose(files_below(folder))[1]:
            hint = f"a folder or hub id of a {facts.pipeline_class}; its weights may be left out"
            raise InputError(f"{option}: has no {lacking[0]}", hint=hint)
    if (found := family_at(folder)) is not facts:
        raise InputError(f"{option}: is of the family {found.name}, but the teacher's file is of {facts.name}")
    return folder


def find_vae(name: str, facts: Facts, reporter: Reporter | None = None) -> Path:
    """The folder or file of an autoencoder for a family; InputError if it is missing or does not fit."""
    option, place = f"--vae {name}", expanded(name)
    if not place.exists():
        if (asked := parse_id(name)) is None:
            raise InputError(f"{option}: no such file or folder", hint="a folder, a .safetensors file or a hub id")
        place = _fetch(option, asked, _autoencoder, "--vae PATH takes a local folder or file", reporter)
    try:
        facts.module.refuse_vae(place)
    except Unfit as error:
        raise InputError(f"{option}: {error}", hint=error.hint) from None
    return place


def license_of(teacher: TeacherRecord) -> str | None:
    """The licence of a teacher, which also applies to its students; None if it is unknown."""
    known = dict.fromkeys(EMBEDDED, "Apache-2.0")
    for facts in FAMILIES.values():
        known |= facts.licenses
    return known.get(teacher.hub or teacher.id)


def _pipeline(facts: Facts, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(Files of a pipeline in a repository, preferably float16 weights; names of missing files)."""
    return pipeline_files(names, facts.networks, facts.settings, half_first=True)


def _index(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """([`model_index.json`], []); without that file, (nothing, names of all missing parts of a pipeline)."""
    names = list(names)
    return ([INDEX], []) if INDEX in names else ([], _pipeline(SDXL, names)[1])


def _configurations(facts: Facts, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(Configurations and vocabularies of a pipeline in a repository; names of missing ones)."""
    small = [name for name in names if name.endswith((".json", ".txt")) and ".index." not in name]
    needed = [INDEX, *(f"{part}/config.json" for part in facts.networks)]
    lacking = [name for name in needed if name not in small]
    folders = {name.split("/")[0] for name in small if "/" in name}
    return small, lacking + [f"{part}/" for part in facts.settings if part not in folders]


def _autoencoder(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(Configuration and one set of weights of the autoencoder in a repository; names of missing files)."""
    names = list(names)
    root = "" if "config.json" in names else "vae/"
    inside = {name.removeprefix(root) for name in names if name.startswith(root)}
    weights = network_weights(inside, half_first=False)
    lacking = [f"{root}config.json"] if "config.json" not in inside else []
    chosen = [f"{root}{name}" for name in ("config.json", *weights)]
    return chosen, lacking + ([] if weights else [f"{root}diffusion_pytorch_model.safetensors"])


def _fetch(option: str, asked: tuple[str, str | None], choose: Choose, hint: str, reporter: Reporter | None) -> Path:
    """The local snapshot of a hub repository with the files that `choose` selects, downloaded if necessary."""
    reporter = reporter or SilentReporter()
    return fetch(Wanted(option, *asked, hint=hint, or_path=True), choose, reporter.say, reporter.draws_bars)


def hub_id(teacher: str) -> tuple[str, str | None] | None:
    """(`owner/name`, revision) of a teacher on the hub; None for an embedded one, or for an existing path."""
    name, _, revision = teacher.partition("@")
    if name in FAMILIES and (revision or name == teacher):
        return parse_id(FAMILIES[name].hub_id + teacher.removeprefix(name))
    return None if teacher in EMBEDDED or expanded(teacher).exists() else parse_id(teacher)


def _family_on_hub(wanted: Wanted) -> Facts:
    """The family of a repository, whose `model_index.json` alone is downloaded; InputError if it has none."""
    index = fetch(wanted, _index, lambda line: None, bars=False) / INDEX
    try:
        return family_of(read_json(index))
    except Unfit as error:
        raise InputError(f"{wanted.option}: {error}", hint=error.hint) from None


def family_of_teacher(name: str) -> Facts:
    """The family of a teacher by its path or hub id, of which at most `model_index.json` is downloaded.

    SDXL if it cannot be determined; `find_teacher` then reports why.
    """
    if (asked := hub_id(name)) is None:
        return family_at(expanded(name))
    try:
        return _family_on_hub(Wanted(f"--teacher {name}", *asked))
    except InputError:
        return SDXL


def check_teacher_name(name: str | None, flag: str = "--teacher") -> None:
    """`find_teacher` for what is on this machine: raises the same errors. A hub id is not looked up."""
    if name is not None and hub_id(name) is None:
        find_teacher(name, flag)


def find_teacher(name: str, flag: str = "--teacher", hint: str | None = None, reporter: Reporter | None = None) -> Path:
    """The pipeline folder or checkpoint file of a teacher, downloaded if necessary.

    `name` is that of an embedded teacher or of a family, a hub id or a path. Raises `InputError` if it cannot be found
    or downloaded, or is not a teacher; `hint` replaces the error's default hint, which is to name another teacher with
    `flag`.
    """
    if name in EMBEDDED:
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset(name)
        except FileNotFoundError as error:
            raise InputError(f"{flag} {name}: {error}") from None
    if (asked := hub_id(name)) is not None:
        local = (
            hint
            if hint is not None
            else f"{flag} PATH takes a local pipeline folder, {flag} {SHAPES} is the small teacher of this package"
        )
        known = {facts.hub_id: facts.size for facts in FAMILIES.values()}
        reporter = reporter or SilentReporter()
        wanted = Wanted(
            f"{flag} {name}", *asked, size=known.get(asked[0], ""), hint=local, or_path=asked[0] not in known
        )
        folder = fetch(wanted, partial(_pipeline, _family_on_hub(wanted)), reporter.say, reporter.draws_bars)
    elif not (folder := expanded(name)).exists():
        named = ", ".join((*FAMILIES, *EMBEDDED))
        choices = f"{flag} takes {named}, a hub id (owner/name[@revision]) or a pipeline folder or file"
        raise InputError(f"{flag} {name}: no such folder", hint=hint or choices)
    elif folder.is_dir() and (kind := owner(folder)) in ("distill", "align") and not (folder / MANIFEST).is_file():
        raise InputError(
            f"{flag} {name}: is a run that is not finished", hint=f"the same {kind} command again resumes it"
        )
    check_teacher(folder, f"{flag} {name}", hint or "")
    return folder
