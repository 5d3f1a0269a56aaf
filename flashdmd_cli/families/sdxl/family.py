"""The SDXL family, built from stock diffusers components; the embedded teacher and real ones use the same code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.families.sdxl.reading import KINDS, ORIGINAL
from flashdmd_cli.families.unet import Requirement, UNetFamily

TEXT = ("context", "pooled")
"""Names of the text embeddings: token embeddings (B, L, D) of both encoders, and a pooled embedding (B, P)."""
NUM_TIME_IDS = 6
"""Original height and width, crop top and left, target height and width."""


class SDXLFamily(UNetFamily):
    """A `StableDiffusionXLPipeline` folder, frozen, in eval mode.

    Its `Conditioning` has `context` (B, L, D), `pooled` (B, P) and `time_ids` (B, 6): original height and width, crop
    top and left, target height and width, in pixels.
    """

    name = SDXL.name
    title = "SDXL"
    kind = StableDiffusionXLPipeline
    kinds = KINDS
    original = ORIGINAL
    options = {"add_watermarker": False}
    encoders = ("text_encoder", "text_encoder_2")

    @classmethod
    def requirements(cls, pipeline: Any) -> Iterable[Requirement]:
        """The denoiser takes token embeddings of both encoders, a pooled embedding and six sizes."""
        config = pipeline.unet.config
        yield "unet addition_embed_type", config.addition_embed_type, "additional input of SDXL", "text_time"
        if pipeline.text_encoder is not None:  # a benchmark has random embeddings instead
            encoders = pipeline.text_encoder.config, pipeline.text_encoder_2.config
            width = sum(each.hidden_size for each in encoders)
            yield "unet cross_attention_dim", config.cross_attention_dim, "width of both text encoders", width
            size = NUM_TIME_IDS * config.addition_time_embed_dim + encoders[1].projection_dim
            name, other = "unet projection_class_embeddings_input_dim", f"size of pooled text and {NUM_TIME_IDS} sizes"
            yield name, config.projection_class_embeddings_input_dim, other, size

    def settings(self) -> dict[str, Any]:
        """As for every family, and whether the unconditional embeddings are zeros."""
        forced = self.pipeline.config.force_zeros_for_empty_prompt
        return super().settings() | {"force_zeros_for_empty_prompt": forced}

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Text embeddings: penultimate hidden states of both encoders concatenated, pooled output of the second."""
        context, _, pooled, _ = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"context": context, "pooled": pooled}

    def conditioning(self, text: Mapping[str, Tensor]) -> Conditioning:
        """Conditioning from text embeddings `context` (B, L, D) and `pooled` (B, P)."""
        embeddings = {name: text[name].to(self.device) for name in TEXT}
        return Conditioning({**embeddings, "time_ids": self._time_ids(len(embeddings["pooled"]))})

    def sized(self, cond: Conditioning, sizes: Tensor) -> Conditioning:
        """`cond` with the pictures' own sizes (B, 6) instead of those of an uncropped square."""
        return cond.replace(time_ids=sizes.to(self.device))

    def null(self, cond: Conditioning) -> Conditioning:
        """The unconditional input of the stock pipeline without a negative prompt, with the sizes of `cond`.

        Both embeddings are zeros (SDXL), or those of "" if the pipeline has `force_zeros_for_empty_prompt: false`.
        """
        if self.pipeline.config.force_zeros_for_empty_prompt:
            return cond.replace(**{name: torch.zeros_like(cond[name]) for name in TEXT})
        return super().null(cond)

    def _time_ids(self, batch: int) -> Tensor:
        size = self.resolution
        return torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32, device=self.device).repeat(batch, 1)

    def added(self, cond: Conditioning) -> dict[str, Tensor]:
        """The pooled embedding and the sizes."""
        return {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
