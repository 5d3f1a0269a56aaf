"""SD3-Medium's architecture with random weights, which needs no download, and no acceptance of terms.

The configurations are those of `stabilityai/stable-diffusion-3-medium-diffusers`, without T5.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from flashdmd_cli.families.random_weights import new_random
from flashdmd_cli.families.sd3.family import SD3Family
from flashdmd_cli.families.sd3.layout import SHIFT
from flashdmd_cli.families.storage import store

TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
SMALL_TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 32,
    "caption_projection_dim": 64,
    "joint_attention_dim": 64,
    "num_attention_heads": 2,
    "num_layers": 3,
    "pooled_projection_dim": 96,
}
SMALL_VAE: dict[str, Any] = {"block_out_channels": [32, 32, 32, 32]}
TOKENS = 78
"""Text tokens of a prompt: 77 of both CLIPs, and one that stands for all of the absent T5's."""


def random_family(
    resolution: int, precision: str, weights: str, device: torch.device, small: bool = False
) -> SD3Family:
    """SD3 with random weights and without text encoders, for pictures of `resolution` pixels.

    `small` is a narrow network of the same structure, which shows within seconds on a CPU that something runs.
    """
    config = {**TRANSFORMER, **(SMALL_TRANSFORMER if small else {}), "sample_size": resolution // 8}
    net = new_random(SD3Transformer2DModel, config, device)
    store(net, weights, SD3Family.adapter_targets)
    pipeline = StableDiffusion3Pipeline(
        vae=new_random(AutoencoderKL, {**VAE, **(SMALL_VAE if small else {}), "sample_size": resolution}, device),
        text_encoder=None, text_encoder_2=None, text_encoder_3=None,
        tokenizer=None, tokenizer_2=None, tokenizer_3=None, transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )  # fmt: skip
    family = SD3Family(pipeline, "random weights", precision)
    family.keep({"": random_text(family, 1)})
    return family


def random_text(family: SD3Family, batch: int) -> dict[str, Tensor]:
    """Random text embeddings for `batch` prompts, of the sizes that the family's denoiser takes."""
    config: Any = family.pipeline.transformer.config
    return {
        "context": torch.randn(batch, TOKENS, config.joint_attention_dim),
        "pooled": torch.randn(batch, config.pooled_projection_dim),
    }
