"""Metadata of a model family that is available without loading weights or importing torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from flashdmd_cli.core.grid import Grid
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import Source

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.family import Family
    from flashdmd_cli.families.reward import LatentReward, RewardDesign, RewardModel
    from flashdmd_cli.families.stored import Stored


@dataclass(frozen=True)
class DefaultRecipes:
    """Names of the shipped recipes for one kind of teacher; None where a command does not support it."""

    distill: str
    align: str | None
    align_adapters: str | None
    """For students with adapters."""
    reward: str | None
    distill_steps: Mapping[int, str] = field(default_factory=dict)
    """Number of steps -> recipe, where it is not `distill`."""
    distill_adapters: Mapping[int, str] = field(default_factory=dict)
    """Number of steps -> recipe with adapters, for devices on which `distill` does not fit."""
    align_steps: Mapping[int, str] = field(default_factory=dict)
    """Number of steps -> recipe, where it is not `align`."""


@dataclass(frozen=True)
class Labels:
    """Identifiers of a model that other programs recognise the files of its students by."""

    architecture: str
    """In ModelSpec, the metadata of Stability AI's files."""
    kohya: Mapping[str, str] = field(default_factory=dict)
    """Metadata of LoRA files of kohya's scripts; empty if the family has no such files."""


class FamilyModule(Protocol):
    """The top-level functions of a family's module."""

    def load(self, source: Source, precision: str, weights: str) -> Family:
        """Load a teacher, on the CPU; its denoiser is stored in the format `weights` (fp32, bf16, fp16, int8).

        Raises `OSError`, `SafetensorError` or `ValueError` for incomplete weights.
        """

    def refuse(self, place: Path) -> None:
        """Raise `Unfit`, describing what was found, unless `place` is a complete teacher of this family."""

    def refuse_vae(self, place: Path) -> None:
        """Raise `Unfit` unless `place` is a folder or file with an autoencoder of this family."""

    def dimensions(self, folder: Path) -> Dimensions:
        """Shapes from the configuration files of a pipeline folder; raises `OSError`, `ValueError` or `KeyError`."""

    def grid(self, steps: int) -> Grid:
        """The few-step grid of the original teacher, for showing it before anything is loaded."""

    def is_student(self, folder: Path) -> bool:
        """Whether a pipeline folder is a few-step student, judged by its scheduler configuration."""

    def random_family(self, resolution: int, precision: str, weights: str, device: torch.device, small: bool) -> Family:
        """The original teacher's architecture with random weights and without text encoders, for `plan` and `bench`;
        `small` is a narrow one of the same structure. A family without this function cannot be planned."""

    def random_text(self, family: Any, batch: int) -> dict[str, torch.Tensor]:
        """Random text embeddings for `batch` prompts, of the sizes that the denoiser takes."""

    def stored_in_file(self, source: Source, part: str) -> dict[str, Stored]:
        """The tensors of one network in a file of a teacher or autoencoder, by diffusers' names."""

    def single_file(
        self,
        parts: Mapping[str, Mapping[str, Stored]],
        configs: Mapping[str, Mapping[str, Any]],
        scheduler: Mapping[str, Any],
    ) -> dict[str, Stored]:
        """A whole pipeline in the layout of the original code, with tensor names that ComfyUI accepts.

        `parts` and `configs`: tensors and configuration of each network; `scheduler`: that of the student's scheduler.
        """

    def kohya_name(self, layer: str, config: Mapping[str, Any]) -> str:
        """Name of a layer of the denoiser, which `config` describes, in LoRA files of kohya's scripts.

        Raises Unfit if its readers do not know such names for this family.
        """

    def labels(self, config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Labels:
        """Identifiers of the model with this configuration of the denoiser and this one of the scheduler."""

    def load_reward(self, folder: Path, family: Any, dtype: torch.dtype) -> RewardModel:
        """Load a latent reward model, frozen. Raises `OSError` or `ValueError`."""

    def refuse_reward(self, layers: str, text_encoders: bool) -> None:
        """Raise `Unfit`, starting with a recipe key, if the family has no reward model in which these are trained.

        A family without this function and the following two is not supported by `reward train`.
        """

    def new_reward(self, family: Any, design: RewardDesign) -> LatentReward:
        """An untrained latent reward model, initialised from the teacher; what is not to be trained is frozen."""

    def save_reward(self, model: Any, family: Any, folder: Path, half: bool) -> None:
        """Write what `load_reward` reads; weights that are the teacher's may be left out. `half`: in float16."""


@dataclass(frozen=True)
class Facts:
    """Metadata of one family: names, hub id, pipeline components, default recipes and code module."""

    name: str
    """Name in recipes and manifests."""
    pipeline: str
    """Prefix of its pipelines' class names in `model_index.json`."""
    hub_id: str
    """`owner/name` of its original teacher, for which `name` is short on the command line."""
    size: str
    """Size of the download, for messages."""
    licenses: Mapping[str, str]
    """Hub id of a teacher -> its licence, which also holds for students distilled from it."""
    networks: tuple[str, ...]
    """Subfolders of a pipeline with weights; the first is the denoiser."""
    settings: tuple[str, ...]
    """Subfolders without weights."""
    encoders: tuple[str, ...]
    """Subfolders that compute latents and text embeddings; not needed where these are cached."""
    file_marks: tuple[str, ...]
    """Prefixes of the denoiser's tensor names in the layout of the original code, after `model.diffusion_model.`."""
    text_marks: tuple[str, ...]
    """Prefixes of the text encoders' tensor names in this layout, which tell families with equal denoisers apart."""
    resolution: int
    """Side in pixels of the original teacher's pictures."""
    recipes: DefaultRecipes
    module_name: str
    """The module that implements `FamilyModule`, imported on first use."""
    optional: tuple[str, ...] = ()
    """Subfolders of encoders that are used where a pipeline folder has them, and are not downloaded."""

    def extras(self, folder: Path) -> tuple[str, ...]:
        """The optional subfolders that are used of a pipeline folder.

        None of a download: what else is in the hub's cache there depends on which commands were run before.
        """
        if folder.parent.name == "snapshots":
            return ()
        return tuple(part for part in self.optional if (folder / part).is_dir())

    def parts(self, source: Source) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the networks, and of the subfolders without weights, that a teacher's pipeline consists of.

        Its folder may contain further ones, which are neither loaded nor exported: Stable Diffusion's safety checker,
        or SD3's third text encoder beside a checkpoint file.
        """
        extras = self.extras(source.weights)
        settings = tuple(part for part in extras if part.startswith("tokenizer"))
        networks = tuple(part for part in extras if part not in settings)
        return self.networks + networks, self.settings + settings

    @property
    def pipeline_class(self) -> str:
        """Class name of its pipeline that draws from a prompt."""
        return f"{self.pipeline.removesuffix('Pipeline')}Pipeline"

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Subfolders of the tokenizers."""
        return tuple(part for part in self.settings if part.startswith("tokenizer"))

    @property
    def module(self) -> FamilyModule:
        """The family's module, imported on first use."""
        return cast("FamilyModule", importlib.import_module(self.module_name))
