"""Stable Diffusion 1 and 2, built from stock diffusers components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.original import clip_tensors, open_clip_tensors, unet_tensors, vae_tensors
from flashdmd_cli.families.sd15.facts import SD15
from flashdmd_cli.families.unet import Requirement, UNetFamily


class SD15Family(UNetFamily):
    """A `StableDiffusionPipeline` folder, frozen, in eval mode. Its `Conditioning` has `context` (B, L, D), the last
    hidden states of the text encoder; the unconditional input is the empty prompt."""

    name = SD15.name
    title = "Stable Diffusion 1 and 2"
    kind = StableDiffusionPipeline
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    encoders = ("text_encoder",)

    @staticmethod
    def _text_tensors(tensors: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
        """Version 1 has the text encoder of OpenAI, version 2 that of OpenCLIP."""
        convert = clip_tensors("cond_stage_model.transformer.")
        return convert(tensors, net) or open_clip_tensors("cond_stage_model.model.")(tensors, net)

    original = {"unet": unet_tensors, "vae": vae_tensors, "text_encoder": _text_tensors}

    @classmethod
    def requirements(cls, pipeline: Any) -> Iterable[Requirement]:
        """The denoiser takes token embeddings only; the stock pipeline uses no statistics of latents."""
        config, statistics = pipeline.unet.config, pipeline.vae.config.get("latents_mean")
        yield "unet addition_embed_type", config.addition_embed_type, f"additional input of {cls.title}", None
        yield "vae latents_mean", statistics, "value that the stock pipeline decodes with", None
        if pipeline.text_encoder is not None:
            width = pipeline.text_encoder.config.hidden_size
            yield "unet cross_attention_dim", config.cross_attention_dim, "width of the text encoder", width

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Text embeddings: last hidden states (B, L, D)."""
        context, _ = self.pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return {"context": context}

    def conditioning(self, text: Mapping[str, Tensor]) -> Conditioning:
        """Conditioning from text embeddings `context` (B, L, D)."""
        return Conditioning({"context": text["context"].to(self.device)})
