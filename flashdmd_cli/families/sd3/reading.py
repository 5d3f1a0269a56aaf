"""Strict loading of SD3 pipelines."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from flashdmd_cli.families.files import Source, vae_folder
from flashdmd_cli.families.reading import read_network
from flashdmd_cli.families.sd3.facts import SD3
from flashdmd_cli.families.sd3.layout import has_t5

KINDS: dict[str, Any] = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
}


def read_pipeline(source: Source, denoiser: torch.dtype = torch.float32) -> StableDiffusion3Pipeline:
    """Load the pipeline of a teacher in float32, its denoiser in the given format.

    Networks are loaded strictly, scheduler, tokenizers and T5 with `from_pretrained`. T5 has the denoiser's format,
    since it is larger (4.7 B parameters).

    Raises Unfit, OSError or SafetensorError for missing or unsuitable files.
    """
    folder = source.weights
    parts: dict[str, Any] = {
        part: read_network(
            KINDS[part],
            vae_folder(source.vae) if part == "vae" and source.vae else folder / part,
            denoiser if part == "transformer" else torch.float32,
        )
        for part in SD3.networks
    }
    if has_t5(folder):
        place = folder / "text_encoder_3"
        variant = None if any(".fp16" not in each.name for each in place.glob("*.safetensors")) else "fp16"
        t5 = T5EncoderModel.from_pretrained(place, dtype=denoiser, variant=variant, local_files_only=True)
        parts["text_encoder_3"] = t5.eval()
    else:
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(folder, **parts, local_files_only=True)
