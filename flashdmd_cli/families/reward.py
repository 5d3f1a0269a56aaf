"""What an alignment asks of a latent reward model, whichever family's it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

Outside = Literal["refuse", "clamp"]
"""What to do with a timestep that the model was not trained at."""


class RewardText(Protocol):
    """`B` prompts as a reward model reads them."""

    def __len__(self) -> int:
        """`B`."""

    def repeat(self, times: int) -> Self:
        """Every prompt `times` in a row."""


class RewardModel(Protocol):
    """Scores noisy latents at their own timestep. Higher is better; only scores of one prompt compare."""

    @property
    def timesteps(self) -> tuple[float, float]:
        """Lowest and highest timestep of its training."""

    @property
    def is_half(self) -> bool:
        """Whether its weights are in half precision, and run as they are; others run as the student's do."""

    def encode(self, prompts: Sequence[str]) -> Any:
        """Prompts as `RewardText`."""

    def score(self, latents: Tensor, t: Tensor, text: Any, outside: Outside = "refuse", guided: bool = True) -> Tensor:
        """Scores (B,), float32, of noisy latents (B, ...) at timesteps `t` (B,) for `text` of length B.

        `guided=False` leaves the empty prompt out. Raises ValueError for a timestep outside the training's range,
        unless `outside` says to take the nearest one of it (`clamp`).
        """

    def to(self, device: torch.device) -> Self:
        """Itself, moved to a device."""
