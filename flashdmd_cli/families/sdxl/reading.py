"""The networks of SDXL pipelines, and the names of their tensors in single files."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from flashdmd_cli.families.original import Convert, clip_tensors, open_clip_tensors, unet_tensors, vae_tensors
from flashdmd_cli.families.sdxl.layout import EMBEDDERS

KINDS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
ORIGINAL: dict[str, Convert] = {
    "unet": unet_tensors,
    "vae": vae_tensors,
    "text_encoder": clip_tensors(f"{EMBEDDERS[0]}transformer."),
    "text_encoder_2": open_clip_tensors(f"{EMBEDDERS[1]}model."),
}
