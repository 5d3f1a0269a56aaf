"""Strict loading of SD3 pipelines."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from flashdmd_cli.families.files import Source
from flashdmd_cli.families.original import Convert, clip_tensors, mmdit_tensors, read_pipeline, vae_tensors
from flashdmd_cli.families.sd3.facts import SD3
from flashdmd_cli.families.sd3.layout import ENCODERS

KINDS: dict[str, Any] = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
}


def _clip_l(tensors: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """CLIP-L has no projection in SD3's original code; in diffusers it is the identity."""
    own = clip_tensors(f"{ENCODERS[0]}transformer.")(tensors, net)
    return {"text_projection.weight": torch.eye(net.config.projection_dim)} | own


ORIGINAL: dict[str, Convert] = {
    "transformer": mmdit_tensors,
    "vae": vae_tensors,
    "text_encoder": _clip_l,
    "text_encoder_2": clip_tensors(f"{ENCODERS[1]}transformer."),
}


def read_sd3(source: Source, denoiser: torch.dtype = torch.float32) -> StableDiffusion3Pipeline:
    """Load the pipeline of a teacher in float32, its denoiser in the given format; with T5 if a folder has it.

    T5 has the denoiser's format, since it is larger: 4.7 B parameters. Single files are
    read without T5. Raises Unfit, OSError or SafetensorError for missing or unsuitable files.
    """
    third: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    if "text_encoder_3" in SD3.parts(source)[0]:
        folder = source.weights / "text_encoder_3"
        variant = None if any(".fp16" not in each.name for each in folder.glob("*.safetensors")) else "fp16"
        t5 = T5EncoderModel.from_pretrained(folder, dtype=denoiser, variant=variant, local_files_only=True)
        third = {"text_encoder_3": t5.eval()}
    return read_pipeline(StableDiffusion3Pipeline, KINDS, ORIGINAL, source, denoiser, **third)
