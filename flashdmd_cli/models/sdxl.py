"""The SDXL family: stock diffusers components behind `predict_x0`; embedded and real teachers differ in folder only."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.schedules import add_noise, output_of, x0_from_output
from flashdmd_cli.models.family import Conditioning
from flashdmd_cli.models.layout import Source
from flashdmd_cli.models.reading import read_network, read_pipeline, save_pipeline
from flashdmd_cli.models.teacher_config import (
    LatentScale,
    check_parts,
    noise_schedule,
    noise_settings,
    prediction_of,
)

PLAIN_ATTENTION_TOKENS = 1024
"""Latent positions up to which plain attention's matrix of weights is small change."""


class SDXLFamily:
    """A `StableDiffusionXLPipeline` folder, frozen, in eval mode. `teacher` is its denoiser."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, source: str, precision: str = "fp32") -> None:
        """`precision`: "bf16" runs denoiser forwards under autocast; x0 arithmetic stays in float32."""
        check_parts(pipeline)
        self.scheduler_config: dict[str, Any] = noise_settings(pipeline.scheduler)
        self.schedule = noise_schedule(self.scheduler_config)
        self.prediction = prediction_of(self.scheduler_config)
        self.latents = LatentScale(pipeline.vae)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.source = source
        self.precision = precision
        self.teacher: nn.Module = pipeline.unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        for part in (pipeline.unet, pipeline.vae):
            _forget_folder(part)
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
            encoder.eval().requires_grad_(False)
        self._empty_prompt: Conditioning | None = None
        config = pipeline.unet.config
        self.resolution: int = config.sample_size * pipeline.vae_scale_factor
        self.latent_shape: tuple[int, int, int] = (config.in_channels, config.sample_size, config.sample_size)

    @classmethod
    def load(cls, source: Path | Source, precision: str = "fp32") -> SDXLFamily:
        """Load a teacher; raises `OSError`, `SafetensorError` or `ValueError` for weights that are not whole."""
        source = source if isinstance(source, Source) else Source(source)
        # The VAE of SDXL overflows in fp16, so weights are read as float32 and autocast decides what runs in bf16.
        return cls(read_pipeline(source), str(source.weights), precision)

    @property
    def device(self) -> torch.device:
        return next(self.teacher.parameters()).device

    def to(self, device: torch.device | str) -> SDXLFamily:
        """Move every component."""
        self.pipeline.to(device)
        return self

    def autocast(self) -> torch.autocast:
        """Forward passes inside run in the family's precision; pictures to look at are decoded outside, in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Embed prompts with both text encoders: penultimate states side by side, pooled from the second."""
        context, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return Conditioning(context, pooled, self._time_ids(len(prompts)))

    def conditioning(self, context: Tensor, pooled: Tensor) -> Conditioning:
        """The conditioning of embeddings that were computed before: context (B, L, D) and pooled (B, P)."""
        return Conditioning(context.to(self.device), pooled.to(self.device), self._time_ids(len(context)))

    def null(self, batch: int) -> Conditioning:
        """The unconditional input, as the stock pipeline has it where no negative prompt is given.

        Zeros for both embeddings (SDXL), or with `force_zeros_for_empty_prompt: false` the embeddings of "".
        """
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            if self._empty_prompt is None:
                self._empty_prompt = self.encode([""])
            empty = self._empty_prompt
            return self.conditioning(empty.context.repeat(batch, 1, 1), empty.pooled.repeat(batch, 1))
        config = self.pipeline.unet.config
        length = self.pipeline.tokenizer.model_max_length
        width = self.pipeline.text_encoder_2.config.projection_dim
        return Conditioning(
            torch.zeros(batch, length, config.cross_attention_dim, device=self.device),
            torch.zeros(batch, width, device=self.device),
            self._time_ids(batch),
        )

    def _time_ids(self, batch: int) -> Tensor:
        size = self.resolution
        return torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32, device=self.device).repeat(batch, 1)

    def _output(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """What `net` answers in its own words: `self.prediction` says which."""
        added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
        with self.autocast(), attention_kernel(x_t):
            return net(x_t, t, encoder_hidden_states=cond.context, added_cond_kwargs=added).sample.float()

    def predict_x0(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Clean latents that `net` sees in `x_t` (B, C, h, w) at timesteps `t` (B,)."""
        return x0_from_output(self.schedule, self.prediction, self._output(net, x_t, t, cond), x_t, t)

    def guided_x0(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        """Classifier-free guidance in the form `u + w (c - u)` (Ho & Salimans 2022), both in one forward pass.

        On the network's answers, as stock pipelines do it. The unconditional side is told the same sizes.
        """
        if guidance == 1.0:
            return self.predict_x0(net, x_t, t, cond)
        both = Conditioning.cat([replace(self.null(len(cond)), time_ids=cond.time_ids), cond])
        null, told = self._output(net, x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return x0_from_output(self.schedule, self.prediction, null + guidance * (told - null), x_t, t)

    def fake_prediction(
        self, net: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, cond: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """What the fake score predicts for diffused `x0`, and its target (Eq. 6): noise, or velocity, or x0.

        In the network's own words, as its teacher was trained and as DMD2 does for noise. A velocity model's error in
        noise would weigh nothing at zero terminal SNR, where the student begins.
        """
        x_t = add_noise(self.schedule, x0, noise, t)
        return self._output(net, x_t, t, cond), output_of(self.schedule, self.prediction, x0, noise, t)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) on about [-1, 1] from latents, with gradient with respect to the latents."""
        return self.vae.decode(self.latents.to_vae(latents)).sample

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents (posterior means, scaled) of pictures on [-1, 1]."""
        return self.latents.to_denoiser(self.vae.encode(pictures).latent_dist.mean)

    def grid(self, steps: int) -> Grid:
        """The few-step grid on this teacher's own noise schedule."""
        return vp_grid(steps, self.scheduler_config)

    def new_network(self) -> nn.Module:
        """A trainable float32 copy of the teacher's denoiser; in eval mode, since no role uses dropout."""
        return copy.deepcopy(self.teacher).float().eval().requires_grad_(True)

    def load_network(self, folder: Path) -> nn.Module:
        """A student's denoiser from its diffusers folder, frozen."""
        net = read_network(UNet2DConditionModel, folder).requires_grad_(False)
        _forget_folder(net)
        return net

    def save_network(self, net: nn.Module, folder: Path) -> None:
        """Write a denoiser as a stock diffusers folder."""
        net.save_pretrained(folder)  # type: ignore[operator]

    def save_pipeline(self, net: nn.Module, folder: Path, grid: Grid) -> None:
        """Write a stock pipeline folder that samples `net` on `grid` with the scheduler it names."""
        scheduler = getattr(diffusers, grid.scheduler).from_config(grid.config)
        parts = {**self.pipeline.components, "unet": net, "scheduler": scheduler}
        config = self.pipeline.config
        whole = StableDiffusionXLPipeline(
            **parts, force_zeros_for_empty_prompt=config.force_zeros_for_empty_prompt, add_watermarker=False
        )
        save_pipeline(whole, folder)

    def content_hash(self) -> str:
        """sha256 over the denoiser's parameters, to name a teacher by content."""
        digest = hashlib.sha256()
        for name, value in sorted(self.teacher.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def attention_kernel(x: Tensor) -> AbstractContextManager[None]:
    """The attention kernel for latents `x` (B, C, h, w): plain products where few tokens meet on a CPU.

    There, the flash kernel's backward pass takes longer than everything else in the attention blocks together.
    """
    if x.device.type == "cpu" and x.shape[-2] * x.shape[-1] <= PLAIN_ATTENTION_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _forget_folder(net: ConfigMixin) -> None:
    """diffusers notes where a network was read from and writes that path into whatever is saved of it."""
    net.register_to_config(_name_or_path="")
