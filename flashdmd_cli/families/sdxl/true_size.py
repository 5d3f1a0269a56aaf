"""SDXL's architecture with random weights, which needs no download: speed and memory do not depend on the weights.

The configurations are those of `stabilityai/stable-diffusion-xl-base-1.0`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from flashdmd_cli.families.noise import SDXL_NOISE
from flashdmd_cli.families.random_weights import new_random
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.storage import store

UNET: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
SMALL_UNET: dict[str, Any] = {
    "block_out_channels": [32, 64, 64],
    "attention_head_dim": [1, 2, 2],
    "transformer_layers_per_block": [1, 1, 2],
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 112,
}
SMALL_VAE: dict[str, Any] = {"block_out_channels": [32, 32, 32, 32]}
TOKENS = 77
"""Text tokens of a prompt."""


def random_family(
    resolution: int, precision: str, weights: str, device: torch.device, small: bool = False
) -> SDXLFamily:
    """SDXL with random weights and without text encoders, for pictures of `resolution` pixels.

    `small` is a narrow network of the same structure, which shows within seconds on a CPU that something runs.
    """
    config = {**UNET, **(SMALL_UNET if small else {}), "sample_size": resolution // 8}
    unet = new_random(UNet2DConditionModel, config, device)
    store(unet, weights, SDXLFamily.adapter_targets)
    pipeline = StableDiffusionXLPipeline(
        vae=new_random(AutoencoderKL, {**VAE, **(SMALL_VAE if small else {}), "sample_size": resolution}, device),
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=EulerDiscreteScheduler(**SDXL_NOISE), add_watermarker=False,
    )  # fmt: skip
    return SDXLFamily(pipeline, "random weights", precision)


def random_text(family: SDXLFamily, batch: int) -> dict[str, Tensor]:
    """Random text embeddings for `batch` prompts, of the sizes that the family's denoiser takes."""
    config: Any = family.pipeline.unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {"context": torch.randn(batch, TOKENS, config.cross_attention_dim), "pooled": torch.randn(batch, pooled)}
