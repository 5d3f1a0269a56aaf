"""What a model family answers; training, sampling and evaluation know nothing else about a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashdmd_cli.core.grid import Grid
from flashdmd_cli.core.schedules import Schedule


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser is told about `B` pictures."""

    context: Tensor  # (B, L, D) token embeddings for cross-attention
    pooled: Tensor  # (B, P)
    time_ids: Tensor  # (B, 6) original height, width, crop top, left, target height, width, in pixels

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return Conditioning(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate along the batch."""
        return Conditioning(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Conditioning)))


class Family(Protocol):
    """A teacher with its encoders and decoder. Networks are stock modules; every prediction comes back as x0."""

    teacher: nn.Module
    precision: str
    """`fp32`, or `bf16`: what `autocast` switches on."""
    resolution: int
    latent_shape: tuple[int, int, int]
    scheduler_config: dict[str, Any]

    @property
    def schedule(self) -> Schedule: ...

    @property
    def device(self) -> torch.device: ...

    def autocast(self) -> torch.autocast: ...

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...

    def conditioning(self, context: Tensor, pooled: Tensor) -> Conditioning: ...

    def null(self, batch: int) -> Conditioning: ...

    def predict_x0(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...

    def guided_x0(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor: ...

    def fake_prediction(
        self, net: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, cond: Conditioning
    ) -> tuple[Tensor, Tensor]: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def encode_pictures(self, pictures: Tensor) -> Tensor: ...

    def grid(self, steps: int) -> Grid: ...

    def new_network(self) -> nn.Module: ...

    def save_pipeline(self, net: nn.Module, folder: Path, grid: Grid) -> None: ...
