"""Sizes of a pipeline folder, read from its configuration files: no weights, no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

ENCODERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
"""The parts that turn pictures and prompts into what the denoiser sees."""


@dataclass(frozen=True)
class Dimensions:
    """Shapes of one sample."""

    resolution: int  # pixels
    latent_shape: tuple[int, int, int]
    context_shape: tuple[int, int]  # tokens, width
    pooled_width: int

    @property
    def latent_numbers(self) -> int:
        """Numbers that the latents of one picture have."""
        return prod(self.latent_shape)

    @property
    def text_numbers(self) -> int:
        """Numbers that the embeddings of one prompt have."""
        return prod(self.context_shape) + self.pooled_width


SDXL = Dimensions(1024, (4, 128, 128), (77, 2048), 1280)
"""stabilityai/stable-diffusion-xl-base-1.0."""


def read_dimensions(folder: Path) -> Dimensions:
    """Dimensions of an SDXL pipeline folder; raises `OSError`, `ValueError` or `KeyError` for any other."""

    def config(part: str, name: str = "config.json") -> dict[str, Any]:
        values: dict[str, Any] = json.loads((folder / part / name).read_text(encoding="utf-8"))
        return values

    unet, vae = config("unet"), config("vae")
    size, channels = int(unet["sample_size"]), int(unet["in_channels"])
    tokens = int(config("tokenizer", "tokenizer_config.json")["model_max_length"])
    scale: int = 2 ** (len(vae["block_out_channels"]) - 1)
    width = int(config("text_encoder_2")["projection_dim"])
    return Dimensions(size * scale, (channels, size, size), (tokens, int(unet["cross_attention_dim"])), width)
