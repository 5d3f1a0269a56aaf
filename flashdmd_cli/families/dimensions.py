"""Sizes of what one picture and one prompt become."""

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
    """Shapes of a prompt's embeddings by name."""

    @property
    def latent_numbers(self) -> int:
        """Numbers that the latents of one picture have."""
        return prod(self.latents)

    @property
    def text_numbers(self) -> int:
        """Numbers that the embeddings of one prompt have."""
        return sum(map(prod, self.text.values()))
