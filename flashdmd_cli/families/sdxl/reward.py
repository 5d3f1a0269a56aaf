"""The latent reward model: scores how well a *noisy* latent fits its prompt, with the encoder half of a denoiser.

Architecture of LRM (Zhang et al., arXiv 2502.01051), so that the published LRM-SDXL and LRM-SD1.5 can be loaded: a
`LatentReward` on the features after the last layer of every down block and after the middle block, the deepest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from flashdmd_cli.core.attention import attention_kernel
from flashdmd_cli.families.reward import LatentReward, RewardText

LRM_TIMESTEPS = (1, 951)
"""Lowest and highest timestep that the published models were trained on."""
LRM_GUIDANCE = 7.5


@dataclass(frozen=True)
class RewardConfig:
    """Metadata stored beside the weights."""

    resolution: int = 1024
    """Side in pixels of the pictures, for SDXL's micro-conditioning."""
    timesteps: tuple[int, int] = LRM_TIMESTEPS
    """Lowest and highest timestep that the model was trained on."""
    guidance: float | None = LRM_GUIDANCE
    """Guidance w of the middle feature, `u + w (c - u)`; None: no guidance."""
    base: str | None = None
    """Content hash of the denoiser that supplies the weights that were not trained."""
    noise: dict[str, Any] | None = None
    """Betas of the noise schedule that the timesteps refer to; None: SDXL's."""


class LatentRewardModel(LatentReward):
    """Scores noisy latents at their own timestep. Higher is better; only scores for the same prompt are comparable."""

    def __init__(
        self,
        trunk: UNet2DConditionModel,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[nn.Module],
        config: RewardConfig | None = None,
    ) -> None:
        """`trunk` is the result of `families.unet.encoder_half`. Two text encoders: SDXL, one: SD1.5."""
        super().__init__()
        self.trunk, self.tokenizers, self.config = trunk, list(tokenizers), config or RewardConfig()
        self.text_encoders = nn.ModuleList(text_encoders)
        widths = list(trunk.config.block_out_channels)
        last: Any = text_encoders[-1].config
        width = last.projection_dim if self.is_sdxl else last.hidden_size
        self.add_head(sum(widths) + widths[-1], width)
        # The pooled output of SDXL's second encoder is projected already; that of CLIP-L is projected here.
        self.text_projection = None if self.is_sdxl else nn.Linear(width, width, bias=False)

    @property
    def is_sdxl(self) -> bool:
        """Whether the model is based on SDXL, with two text encoders and picture sizes, rather than on SD1.5."""
        return len(self.text_encoders) == 2

    @property
    def timesteps(self) -> tuple[int, int]:
        """Lowest and highest timestep that the model was trained on."""
        return self.config.timesteps

    @property
    def is_half(self) -> bool:
        """Whether the trunk's weights are in half precision; then it runs without autocast."""
        return self.trunk.dtype != torch.float32

    @property
    def guidance(self) -> float | None:
        """Guidance of the middle feature; None: no guidance."""
        return self.config.guidance

    def set_trainable(self, layers: str, text_encoders: bool) -> None:
        """Set `requires_grad`: the trunk (`all`) or its transformer blocks (`attention`), the projections, and the text
        encoders if they are trained."""
        self.requires_grad_(True)
        self.text_encoders.requires_grad_(text_encoders)
        if layers == "attention":
            for name, parameter in self.trunk.named_parameters():
                parameter.requires_grad_(".attentions." in name)

    def encode(self, prompts: Sequence[str]) -> RewardText:
        """Embeddings of prompts, and of the empty prompt if the model has guidance."""
        guided = self.config.guidance is not None
        texts = [*prompts, ""] if guided else list(prompts)
        outputs = []
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids = tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
                            return_tensors="pt").input_ids.to(self.device)  # fmt: skip
            outputs.append(encoder(ids, output_hidden_states=True))
        if self.is_sdxl:
            context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
            pooled = outputs[1].text_embeds
        else:
            context, pooled = outputs[0].last_hidden_state, outputs[0].pooler_output
        num = len(prompts)
        null = RewardText(context[num:], pooled[num:]) if guided else None
        return RewardText(context[:num], pooled[:num], null)

    def target(self, text: RewardText) -> Tensor:
        """The pooled embedding; that of SD1.5 projected."""
        return text.pooled if self.text_projection is None else self.text_projection(text.pooled.float())

    def features(self, latents: Tensor, t: Tensor, text: RewardText) -> tuple[Tensor, Tensor]:
        """Pooled features of the down blocks, concatenated (B, sum of widths), and of the middle block (B, width)."""
        taps: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[object, ...], output: Any) -> None:
            taps.append((output if isinstance(output, Tensor) else output[0]).mean(dim=(2, 3)))

        # The last layer of a block before its downsampler: its attention if it has any, else its residual block.
        layers = [getattr(block, "attentions", block.resnets)[-1] for block in self.trunk.down_blocks]
        hooks = [layer.register_forward_hook(keep) for layer in layers]
        dtype = self.trunk.dtype
        added = None
        if self.is_sdxl:
            size = self.config.resolution
            time_ids = torch.tensor([size, size, 0, 0, size, size], dtype=dtype, device=latents.device)
            added = {"text_embeds": text.pooled.to(dtype), "time_ids": time_ids.repeat(len(latents), 1)}
        try:
            with attention_kernel(latents):
                middle = self.trunk(latents.to(dtype), t, text.context.to(dtype), added_cond_kwargs=added).sample
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(taps, dim=1).float(), middle.mean(dim=(2, 3)).float()
