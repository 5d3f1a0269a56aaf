"""The interface of a model family; training, sampling and evaluation use nothing else of a model.

Lifecycle, in order: a family is loaded from a teacher's folder or file; `base` is the teacher's denoiser, and every
other network of a run is a view on it or on a copy (`families/base.py`); pictures and prompts are encoded; a view
predicts x0 of a noisy state through `call`; latents are decoded; a student is saved alone or as a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashdmd_cli.core.grid import Grid
from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Calls


class Family(Calls, Protocol):
    """A teacher with its encoders and decoder, frozen, in eval mode."""

    name: str
    """Name in recipes."""
    source: str
    """Folder or file that the teacher was loaded from."""
    base: Base
    """The teacher's denoiser."""
    precision: str
    """`fp32` or `bf16`; the number format of forward passes inside `autocast`."""
    resolution: int
    latent_shape: tuple[int, ...]
    tap_widths: tuple[int, ...]
    """Channels of the feature maps that `tap` returns."""

    @property
    def teacher(self) -> View: ...

    @property
    def device(self) -> torch.device: ...

    def autocast(self) -> torch.autocast: ...

    def embed(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """Text embeddings of B prompts: tensors (B, ...) by name, as stored in caches."""

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...

    def release_encoders(self, prompts: Sequence[str]) -> None:
        """Free the memory of the text encoders; afterwards only these prompts and "" can be encoded."""

    def conditioning(self, text: Mapping[str, Tensor]) -> Conditioning:
        """Conditioning from the embeddings of `embed`, for uncropped square pictures."""

    def sized(self, cond: Conditioning, sizes: Tensor) -> Conditioning:
        """`cond` with the pictures' own sizes (B, 6), in pixels: original height and width, crop top and left, target
        height and width. Raises Unfit for a family without such an input."""

    def decode(self, latents: Tensor) -> Tensor: ...

    def checkpoint_decoder(self) -> None:
        """Enable activation checkpointing in `decode`."""

    def encode_pictures(self, pictures: Tensor) -> Tensor: ...

    @property
    def tokenizers(self) -> Sequence[Any]:
        """The tokenizers of the text encoders, from transformers."""

    def to(self, device: torch.device | str) -> Family: ...

    def grid(self, steps: int) -> Grid: ...

    def solve(self, denoise: Callable[[Tensor, Tensor], Tensor], steps: int, x: Tensor) -> Tensor:
        """The teacher's deterministic sampler (DDIM, Euler) from noise `x` to x0; `denoise(x_t, t)` returns x0."""

    def load_student(self, folder: Path) -> View:
        """Load a student from a diffusers folder, frozen, on the CPU."""

    def save_network(self, net: nn.Module, folder: Path) -> None: ...

    def save_pipeline(self, net: nn.Module, folder: Path, grid: Grid) -> None: ...
