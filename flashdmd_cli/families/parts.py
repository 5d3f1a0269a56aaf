"""The parts of a pipeline as files: networks whose tensors are read one at a time, and folders without weights."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.files import Source, read_json, vae_folder, weight_files
from flashdmd_cli.families.reading import published
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
    return published(tensors, read_json(folder / "config.json"))
