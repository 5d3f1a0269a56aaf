"""The interface of a latent reward model, for any family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

Outside = Literal["refuse", "clamp"]
"""Handling of timesteps outside the training range: raise an error, or use the nearest one in the range."""


class RewardText(Protocol):
    """Embeddings of `B` prompts for a reward model."""

    def __len__(self) -> int:
        """`B`."""

    def repeat(self, times: int) -> Self:
        """Each prompt repeated `times` times, as `repeat_interleave`."""


class RewardModel(Protocol):
    """Scores noisy latents at their own timestep. Higher is better; only scores for the same prompt are comparable."""

    @property
    def timesteps(self) -> tuple[float, float]:
        """Lowest and highest timestep that the model was trained on."""

    @property
    def is_half(self) -> bool:
        """Whether the weights are in half precision; then they run without autocast, others under the student's."""

    def encode(self, prompts: Sequence[str]) -> Any:
        """Embeddings of prompts (`RewardText`)."""

    def score(self, latents: Tensor, t: Tensor, text: Any, outside: Outside = "refuse", guided: bool = True) -> Tensor:
        """Scores (B,), float32, of noisy latents (B, ...) at timesteps `t` (B,) for `text` of length B.

        `guided=False` turns off guidance by the empty prompt. Raises ValueError for a timestep outside the training
        range, unless `outside` is `clamp`.
        """

    def to(self, device: torch.device) -> Self:
        """Move the model to a device; returns itself."""
