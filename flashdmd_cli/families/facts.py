"""What is known of a model family before anything is loaded; importing this needs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import Source

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.family import Family
    from flashdmd_cli.families.reward import RewardModel


@dataclass(frozen=True)
class DefaultRecipes:
    """Names of the shipped recipes that fit one kind of teacher."""

    distill: str
    align: str
    align_adapters: str
    """For a student whose stage 1 trained adapters."""
    reward: str
    distill_steps: Mapping[int, str] = field(default_factory=dict)
    """For numbers of steps that have a recipe of their own."""
    align_steps: Mapping[int, str] = field(default_factory=dict)


class FamilyModule(Protocol):
    """The functions that a family's module has at its top level."""

    def load(self, source: Source, precision: str) -> Family:
        """The family of a teacher, on the CPU. Raises `OSError`, `SafetensorError` or `ValueError` for weights that are
        not whole."""

    def refuse(self, place: Path) -> None:
        """Raise `Unfit`, in words of what it is, for a folder or file that is no whole teacher of this family."""

    def refuse_vae(self, place: Path) -> None:
        """Raise `Unfit` for a folder or file that holds no autoencoder of this family."""

    def dimensions(self, folder: Path) -> Dimensions:
        """Sizes of a pipeline folder, from its configurations; raises `OSError`, `ValueError` or `KeyError`."""

    def is_student(self, folder: Path) -> bool:
        """Whether a pipeline folder is a few-step student, by how its scheduler is set."""

    def load_reward(self, folder: Path, family: Any, dtype: torch.dtype) -> RewardModel:
        """The latent reward model of a folder, frozen, on the CPU. Raises `OSError` or `ValueError`."""


@dataclass(frozen=True)
class Facts:
    """One family: how its teachers are called, what they are made of, and where its code is."""

    name: str
    """What recipes and manifests call it."""
    pipeline: str
    """How the class of its pipelines begins in `model_index.json`."""
    hub_id: str
    """`owner/name` of its original teacher; `name` on the command line stands for it."""
    size: str
    """Of the download."""
    licenses: Mapping[str, str]
    """Of a teacher by hub id, and so of what is distilled from it."""
    networks: tuple[str, ...]
    """Folders of a pipeline that hold weights; the first is the denoiser."""
    settings: tuple[str, ...]
    """Folders without weights."""
    encoders: tuple[str, ...]
    """Folders that turn pictures and prompts into what the denoiser sees, which caches stand in for."""
    resolution: int
    """Side in pixels of what the original teacher draws."""
    recipes: DefaultRecipes
    module_name: str
    """The module with the functions of `FamilyModule`; imported when one is called."""

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The folders with vocabularies."""
        return tuple(part for part in self.settings if part.startswith("tokenizer"))

    @property
    def module(self) -> FamilyModule:
        """The family's code."""
        return cast("FamilyModule", importlib.import_module(self.module_name))
