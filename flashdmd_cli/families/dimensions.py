"""Shapes of the latents of one picture and of the embeddings of one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Dimensions:
    """Shapes of one sample."""

    resolution: int
    """Side in pixels."""
    latents: tuple[int, ...]
    text: Mapping[str, tuple[int, ...]]
    """Shape of each text embedding by name."""

    @property
    def latent_numbers(self) -> int:
        """Number of values in the latents of one picture."""
        return prod(self.latents)

    @property
    def text_numbers(self) -> int:
        """Number of values in the embeddings of one prompt."""
        return sum(map(prod, self.text.values()))
