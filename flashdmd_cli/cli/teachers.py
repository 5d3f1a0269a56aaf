"""What a teacher is read from: its weights, the configurations of a single file, and perhaps another VAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.kinds import SHAPES, is_exported
from flashdmd_cli.cli.sources import SDXL_ID, find_teacher
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.models.layout import Source, refuse_vae
from flashdmd_cli.runs.errors import InputError

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe_schema import Model

CONFIG_FILES = ("*.json", "*.txt")
"""What a pipeline's repository has beside its weights: configurations and vocabularies, 3 MB of SDXL's."""


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
    if name is None or not (place := Path(name).expanduser()).exists():
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
    folder = Path(name).expanduser()
    if not folder.exists() and _is_hub_id(name):
        folder = _fetch(name, CONFIG_FILES, said)
    needed = [folder / part / "config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")]
    needed += [folder / "model_index.json", folder / "tokenizer", folder / "tokenizer_2", folder / "scheduler"]
    if lacking := [path for path in needed if not path.exists()]:
        raise InputError(
            f"{said}: has no {lacking[0].relative_to(folder)}",
            hint="a folder or hub id of an SDXL pipeline; its weights may be left out",
        )
    return folder


def find_vae(name: str) -> Path:
    """The folder or file of an autoencoder; InputError when there is none."""
    said, place = f"--vae {name}", Path(name).expanduser()
    if not place.exists():
        if not _is_hub_id(name):
            raise InputError(f"{said}: no such file or folder", hint="a folder, a .safetensors file or a hub id")
        place = _fetch(name, ("config.json", "*.safetensors"), said)
    try:
        refuse_vae(place)
    except Unfit as error:
        raise InputError(f"{said}: {error}", hint=error.hint) from None
    return place


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _fetch(name: str, patterns: Sequence[str], said: str) -> Path:
    """The snapshot of a hub repository with the files that match; fetched where they are not here."""
    from huggingface_hub import snapshot_download

    hub_id, _, revision = name.partition("@")
    chosen = [*patterns, *(f"*/{pattern}" for pattern in patterns)]
    for local in (True, False):
        try:
            folder = Path(snapshot_download(hub_id, revision=revision or None, allow_patterns=chosen,
                                            local_files_only=local))  # fmt: skip
        except Exception as error:  # what this library raises is a matter of its version
            if not local:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                hint = "name a local path"
                raise InputError(f"{said}: is not on this machine and cannot be fetched: {first}", hint=hint) from error
        else:
            if not local or any(folder.rglob("*.json")):
                return folder
    raise AssertionError("unreachable")
