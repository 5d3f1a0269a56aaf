"""The SD3 family, built from stock diffusers components; the embedded teacher and real ones use the same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn

from flashdmd_cli.core.grid import NUM_TRAIN_TIMESTEPS, Grid, flow_grid, teacher_shift
from flashdmd_cli.core.rollout import at
from flashdmd_cli.core.schedules import FlowSchedule, Prediction
from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.pipeline import PipelineFamily
from flashdmd_cli.families.reading import read_network, save_pipeline
from flashdmd_cli.families.sd3.attention import count_last_token
from flashdmd_cli.families.sd3.facts import SD3
from flashdmd_cli.families.sd3.layout import T5_TOKENS
from flashdmd_cli.families.sd3.reading import read_sd3
from flashdmd_cli.families.sharding import shallow_copy
from flashdmd_cli.families.storage import read_as, store

LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    "net.0.proj", "net.2",
)  # fmt: skip
"""Every linear layer of the blocks' attention and feed-forward parts, of both streams."""


class SD3Family(PipelineFamily):
    """A `StableDiffusion3Pipeline` folder, frozen, in eval mode.

    Its `Conditioning` has `context` (B, L, D), the tokens of both CLIPs side by side followed by those of T5, and
    `pooled` (B, P) of both CLIPs. Without T5 the context ends in one token of zeros that stands for all 256 of T5's.
    """

    name = SD3.name
    prediction: Prediction = "v_prediction"
    adapter_targets: tuple[str, ...] = LORA_TARGETS
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    compiled_blocks: tuple[str, ...] = ("JointTransformerBlock",)

    def __init__(self, pipeline: StableDiffusion3Pipeline, source: str, precision: str = "fp32") -> None:
        """`precision="bf16"` runs the denoiser under autocast; conversions to x0 stay in float32."""
        check_parts(pipeline)
        self.shift = teacher_shift(pipeline.scheduler.config)
        self.schedule = FlowSchedule(self.shift)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.source = source
        self.precision = precision
        self.has_t5 = pipeline.text_encoder_3 is not None
        net = self._prepared(pipeline.transformer)
        self.base = Base(self, net)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        self.vae.register_to_config(_name_or_path="")
        self.freeze_encoders()
        self.tap_widths: tuple[int, ...] = (net.inner_dim,)
        config = net.config
        self.resolution: int = config.sample_size * pipeline.vae_scale_factor
        self.latent_shape: tuple[int, ...] = (config.in_channels, config.sample_size, config.sample_size)

    @classmethod
    def load(cls, source: Path | Source, precision: str = "fp32", weights: str = "fp32") -> SD3Family:
        """Load a teacher; `weights` (fp32, bf16, fp16, int8) is the number format in which its denoiser is stored.

        Raises `OSError`, `SafetensorError` or `ValueError` for incomplete weights.
        """
        source = source if isinstance(source, Source) else Source(source)
        pipeline = read_sd3(source, read_as(weights))
        store(pipeline.transformer, weights, cls.adapter_targets)
        return cls(pipeline, str(source.weights), precision)

    def _prepared(self, net: Any) -> Any:
        """A transformer, frozen, that takes this family's contexts and records no path of this machine."""
        net.register_to_config(_name_or_path="")
        if not self.has_t5:
            count_last_token(net, T5_TOKENS)
        return net.eval().requires_grad_(False)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Text embeddings: penultimate hidden states of both CLIPs side by side, then T5's; pooled outputs of both."""
        context, _, pooled, _ = self.pipeline.encode_prompt(
            prompts,
            prompts,
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS if self.has_t5 else 1,
        )
        return {"context": context, "pooled": pooled}

    def conditioning(self, text: Mapping[str, Tensor]) -> Conditioning:
        """Conditioning from text embeddings `context` (B, L, D) and `pooled` (B, P)."""
        return Conditioning({name: text[name].to(self.device) for name in ("context", "pooled")})

    def call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The velocity that `net` predicts for `x_t` (B, C, h, w) at `t` (B,) = 1000 sigma."""
        with self.autocast():
            return net(x_t, cond["context"], cond["pooled"], t).sample.float()

    def tap(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """The picture tokens after half of the blocks as a map (B, D, h / patch, w / patch)."""
        half: Any = first_half(net)
        return [F.pixel_unshuffle(self.call(half, x_t, t, cond), half.config.patch_size)]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) on about [-1, 1] from latents (B, C, h, w); differentiable."""
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + config.shift_factor).sample

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents (posterior means, shifted and scaled) of pictures on [-1, 1]."""
        return to_latents(self.vae, pictures)

    def grid(self, steps: int) -> Grid:
        """The few-step grid with this teacher's own shift."""
        return flow_grid(steps, self.shift)

    def solve(self, denoise: Callable[[Tensor, Tensor], Tensor], steps: int, x: Tensor) -> Tensor:
        """Euler's method from pure noise `x` (B, C, h, w) to x0 at the noise levels of the stock pipeline."""
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=self.shift)
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas.tolist()
        for now, following in zip(sigmas, sigmas[1:], strict=False):
            x = x + (following - now) / now * (x - denoise(x, at(NUM_TRAIN_TIMESTEPS * now, x)))
        return x

    def load_student(self, folder: Path) -> View:
        """Load a student from its diffusers folder, frozen, on the CPU."""
        return Base(self, self._prepared(read_network(SD3Transformer2DModel, folder))).view()

    def save_pipeline(self, net: nn.Module, folder: Path, grid: Grid) -> None:
        """Write a stock pipeline folder with the denoiser `net` and the scheduler of `grid`."""
        scheduler = getattr(diffusers, grid.scheduler).from_config(grid.config)
        parts = {**self.pipeline.components, "transformer": net, "scheduler": scheduler}
        save_pipeline(StableDiffusion3Pipeline(**parts), folder)


def to_latents(vae: Any, pictures: Tensor) -> Tensor:
    """Latents (B, C, h, w) of the denoiser for pictures on [-1, 1]: posterior means, shifted and scaled."""
    return (vae.encode(pictures).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor


def first_half(net: Any) -> Any:
    """A transformer that returns the picture tokens after the first half of the blocks of `net`.

    The tokens are arranged as the network arranges its output, `patch` x `patch` values to a token and channel. It
    shares modules and does not change `net`.
    """
    half = shallow_copy(net)
    half.transformer_blocks = net.transformer_blocks[: (len(net.transformer_blocks) + 1) // 2]
    half.norm_out = _First()
    half.proj_out = nn.Identity()
    half.out_channels = net.inner_dim // net.config.patch_size**2
    return half


class _First(nn.Module):
    """Returns the first of its inputs."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x


def check_parts(pipeline: StableDiffusion3Pipeline) -> None:
    """Raise `ValueError` for components that are not SD3's or do not fit each other."""
    config: Any = pipeline.transformer.config
    vae: Any = pipeline.vae
    scheduler: Any = pipeline.scheduler.config
    if not isinstance(vae, AutoencoderKL):
        raise ValueError(f"vae is {type(vae).__name__}; AutoencoderKL is needed")
    if vae.config.shift_factor is None:
        raise ValueError("vae shift_factor is null, which stock SD3 pipelines cannot decode with; write 0.0 instead")
    if scheduler.get("shift") is None or scheduler.get("use_dynamic_shifting"):
        raise ValueError(
            f"scheduler {type(pipeline.scheduler).__name__} has no fixed shift of a flow-matching schedule"
        )
    if scheduler.num_train_timesteps != NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"scheduler num_train_timesteps is {scheduler.num_train_timesteps}, not {NUM_TRAIN_TIMESTEPS}")
    pairs = [("transformer in_channels", config.in_channels, "vae latent_channels", vae.config.latent_channels)]
    width = 0
    if pipeline.text_encoder is not None:  # a benchmark has random embeddings instead
        encoders = [pipeline.text_encoder.config, pipeline.text_encoder_2.config]
        width, pooled = sum(each.hidden_size for each in encoders), sum(each.projection_dim for each in encoders)
        pairs.append(
            ("transformer pooled_projection_dim", config.pooled_projection_dim, "pooled size of both CLIPs", pooled)
        )
    if pipeline.text_encoder_3 is not None:
        t5 = pipeline.text_encoder_3.config.d_model
        pairs.append(("transformer joint_attention_dim", config.joint_attention_dim, "width of T5", t5))
    for name, value, other, wanted in pairs:
        if value != wanted:
            raise ValueError(f"{name} is {value}, but the {other} is {wanted}")
    if width > config.joint_attention_dim:
        raise ValueError(
            f"transformer joint_attention_dim is {config.joint_attention_dim}, less than the {width} of both CLIPs"
        )
