"""The SDXL family, built from stock diffusers components; the embedded teacher and real ones use the same code."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.rollout import at
from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.pipeline import PipelineFamily
from flashdmd_cli.families.reading import read_network, save_pipeline
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.families.sdxl.reading import read_pipeline
from flashdmd_cli.families.sdxl.settings import (
    LatentScale,
    check_parts,
    noise_schedule,
    noise_settings,
    prediction_of,
)
from flashdmd_cli.families.storage import store_in_bf16

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
"""Every linear layer (or 1x1 convolution) of the transformer blocks."""
TEXT = ("context", "pooled")
"""Names of the text embeddings: token embeddings (B, L, D) of both encoders, and a pooled embedding (B, P)."""


class SDXLFamily(PipelineFamily):
    """A `StableDiffusionXLPipeline` folder, frozen, in eval mode.

    Its `Conditioning` has `context` (B, L, D), `pooled` (B, P) and `time_ids` (B, 6): original height and width, crop
    top and left, target height and width, in pixels.
    """

    name = SDXL.name
    adapter_targets: tuple[str, ...] = LORA_TARGETS
    encoders = ("text_encoder", "text_encoder_2")
    compiled_blocks: tuple[str, ...] = ("BasicTransformerBlock",)

    def __init__(self, pipeline: StableDiffusionXLPipeline, source: str, precision: str = "fp32") -> None:
        """`precision="bf16"` runs the denoiser under autocast; conversions to x0 stay in float32."""
        check_parts(pipeline)
        self.scheduler_config: dict[str, Any] = noise_settings(pipeline.scheduler)
        self.schedule = noise_schedule(self.scheduler_config)
        self.prediction = prediction_of(self.scheduler_config)
        self.latents = LatentScale(pipeline.vae)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.source = source
        self.precision = precision
        self.base = Base(self, pipeline.unet.eval().requires_grad_(False))
        self.vae = pipeline.vae.eval().requires_grad_(False)
        for part in (pipeline.unet, pipeline.vae):
            _forget_folder(part)
        self.freeze_encoders()
        self._empty_prompt: Conditioning | None = None
        self.tap_widths: tuple[int, ...] = (pipeline.unet.config.block_out_channels[-1],)
        config = pipeline.unet.config
        self.resolution: int = config.sample_size * pipeline.vae_scale_factor
        self.latent_shape: tuple[int, ...] = (config.in_channels, config.sample_size, config.sample_size)

    @classmethod
    def load(cls, source: Path | Source, precision: str = "fp32", weights: str = "fp32") -> SDXLFamily:
        """Load a teacher; `weights="bf16"` stores the denoiser in bfloat16.

        Raises `OSError`, `SafetensorError` or `ValueError` for incomplete weights.
        """
        source = source if isinstance(source, Source) else Source(source)
        # The VAE of SDXL overflows in fp16, so it is read as float32 and autocast decides what runs in bf16.
        pipeline = read_pipeline(source, torch.bfloat16 if weights == "bf16" else torch.float32)
        if weights == "bf16":
            store_in_bf16(pipeline.unet)
        return cls(pipeline, str(source.weights), precision)

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizers of both text encoders."""
        return [self.pipeline.tokenizer, self.pipeline.tokenizer_2]

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
        if self._empty_prompt is None:
            self._empty_prompt = self.encode([""])
        return cond.replace(**{name: self._empty_prompt[name].expand_as(cond[name]) for name in TEXT})

    def _time_ids(self, batch: int) -> Tensor:
        size = self.resolution
        return torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32, device=self.device).repeat(batch, 1)

    def call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Output of `net` for `x_t` (B, C, h, w) at `t` (B,): noise, velocity or x0, depending on `self.prediction`."""
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
        with self.autocast():
            return net(x_t, t, encoder_hidden_states=cond["context"], added_cond_kwargs=added).sample.float()

    def tap(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """The output (B, C, h, w) of the UNet's middle block, the input of DMD2's discriminator head."""
        return [self.call(encoder_half(net), x_t, t, cond)]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) on about [-1, 1] from latents (B, C, h, w); differentiable."""
        return self.vae.decode(self.latents.to_vae(latents)).sample

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents (posterior means, scaled) of pictures on [-1, 1]."""
        return self.latents.to_denoiser(self.vae.encode(pictures).latent_dist.mean)

    def grid(self, steps: int) -> Grid:
        """The few-step grid on this teacher's own noise schedule."""
        return vp_grid(steps, self.scheduler_config)

    def solve(self, denoise: Callable[[Tensor, Tensor], Tensor], steps: int, x: Tensor) -> Tensor:
        """Deterministic DDIM (eta 0) from pure noise `x` (B, C, h, w) to x0, with the stock scheduler.

        `denoise(x_t, t)` returns x0, so the scheduler has `prediction_type="sample"`.
        """
        config = self.scheduler_config
        scheduler: Any = DDIMScheduler(
            **{key: config[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")},
            trained_betas=config.get("trained_betas"),
            rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
            set_alpha_to_one=config.get("set_alpha_to_one", False),
            steps_offset=config.get("steps_offset", 1),
            timestep_spacing="trailing",
            prediction_type="sample",
            clip_sample=False,
        )
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(denoise(x, at(int(t), x)), t, x).prev_sample
        return x

    def load_student(self, folder: Path) -> View:
        """Load a student from its diffusers folder, frozen, on the CPU."""
        net = read_network(UNet2DConditionModel, folder).requires_grad_(False)
        _forget_folder(net)
        return Base(self, net).view()

    def save_pipeline(self, net: nn.Module, folder: Path, grid: Grid) -> None:
        """Write a stock pipeline folder with the denoiser `net` and the scheduler of `grid`."""
        scheduler = getattr(diffusers, grid.scheduler).from_config(grid.config)
        parts = {**self.pipeline.components, "unet": net, "scheduler": scheduler}
        config = self.pipeline.config
        whole = StableDiffusionXLPipeline(
            **parts, force_zeros_for_empty_prompt=config.force_zeros_for_empty_prompt, add_watermarker=False
        )
        save_pipeline(whole, folder)

    def content_hash(self) -> str:
        """SHA-256 of the denoiser's parameters, which identifies a teacher by its content."""
        digest = hashlib.sha256()
        for name, value in sorted(self.teacher.weights().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def encoder_half(unet: nn.Module) -> nn.Module:
    """A UNet that returns the output of the middle block of `unet`; it shares modules and does not change `unet`."""
    half: Any = copy.copy(unet)
    half._modules = dict(unet._modules)
    half.up_blocks = nn.ModuleList()
    half.conv_norm_out = None
    half.conv_out = nn.Identity()
    return half


def _forget_folder(net: ConfigMixin) -> None:
    """Remove the path that diffusers records when loading and would write into saved configurations."""
    net.register_to_config(_name_or_path="")
