"""The parts of a pipeline as files: networks whose tensors are read one at a time, and folders without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.files import Source, read_json, vae_folder, weight_files
from flashdmd_cli.families.reading import OLD_ATTENTION, POSITIONS, TEXT
from flashdmd_cli.families.stored import Stored, read_stored

INDEX = "model_index.json"


def config_folder(facts: Facts, source: Source, part: str) -> Path:
    """The folder with the configuration of a network."""
    if part == facts.networks[0] and source.denoiser is not None:
        return source.denoiser
    if part == "vae" and source.vae is not None and source.vae.is_dir():
        return vae_folder(source.vae)
    return source.folder / part


def stored_network(facts: Facts, source: Source, part: str) -> dict[str, Stored]:
    """The tensors of one network by their names in published files of diffusers and transformers.

    Raises Unfit, OSError or SafetensorError for missing or unsuitable files.
    """
    folder = config_folder(facts, source, part)
    replaced = folder != source.folder / part or (part == "vae" and source.vae is not None)
    if source.weights.is_file() and not replaced or (part == "vae" and source.vae is not None and source.vae.is_file()):
        tensors = facts.module.stored_in_file(source, part)
    else:
        tensors = read_stored(weight_files(folder))
    return _published(tensors, read_json(folder / "config.json"))


def _published(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> dict[str, Stored]:
    """`tensors` under the names that every version of the libraries reads."""
    is_clip = config.get("model_type") == "clip_text_model"
    found = {}
    for name, value in tensors.items():
        if name.endswith(POSITIONS):
            continue
        if "attentions." in name:
            for old, new in OLD_ATTENTION.items():
                name = name.replace(f".{old}", f".{new}")
        if is_clip and not name.startswith((TEXT, "text_projection.")):
            name = TEXT + name
        found[name] = value
    return found
