"""Families of Stable Diffusion with a UNet and discrete noise levels: what SDXL and Stable Diffusion 1 and 2 share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import diffusers
import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.rollout import at
from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.noise import noise_schedule, noise_settings, prediction_of
from flashdmd_cli.families.original import Convert, read_pipeline
from flashdmd_cli.families.pipeline import PipelineFamily
from flashdmd_cli.families.reading import read_network, save_pipeline
from flashdmd_cli.families.sharding import shallow_copy
from flashdmd_cli.families.storage import read_as, store

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
"""Every linear layer (or 1x1 convolution) of the transformer blocks."""
Requirement = tuple[str, Any, str, Any]
"""(Name of a setting, its value, name of what it has to be equal to, that value)."""


class UNetFamily(PipelineFamily):
    """A stock pipeline with a `UNet2DConditionModel`, frozen, in eval mode.

    Subclasses define the class attributes, `_embed`, `conditioning` and `requirements`.
    """

    kind: ClassVar[Any]
    """Class of the pipeline."""
    title: ClassVar[str]
    """Name of the model in error messages."""
    kinds: ClassVar[dict[str, Any]]
    """Class of each network, the denoiser first."""
    original: ClassVar[dict[str, Convert]]
    """Translation of each network's tensor names for files in the original layout."""
    options: ClassVar[dict[str, Any]] = {}
    """Arguments for creating the pipeline, besides its components."""
    adapter_targets: tuple[str, ...] = LORA_TARGETS
    compiled_blocks: tuple[str, ...] = ("BasicTransformerBlock",)

    def __init__(self, pipeline: Any, source: str, precision: str = "fp32") -> None:
        """`precision="bf16"` runs the denoiser under autocast; conversions to x0 stay in float32."""
        self._check(pipeline)
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
        config = pipeline.unet.config
        self.tap_widths: tuple[int, ...] = (config.block_out_channels[-1],)
        self.resolution: int = config.sample_size * pipeline.vae_scale_factor
        self.latent_shape: tuple[int, ...] = (config.in_channels, config.sample_size, config.sample_size)

    @classmethod
    def load(cls, source: Path | Source, precision: str = "fp32", weights: str = "fp32") -> Self:
        """Load a teacher; `weights` (fp32, bf16, fp16, int8) is the number format in which its denoiser is stored.

        Raises `OSError`, `SafetensorError` or `ValueError` for incomplete weights.
        """
        source = source if isinstance(source, Source) else Source(source)
        # The VAE of SDXL overflows in fp16, so it is read as float32 and autocast decides what runs in bf16.
        pipeline = read_pipeline(cls.kind, cls.kinds, cls.original, source, read_as(weights), **cls.options)
        store(pipeline.unet, weights, cls.adapter_targets)
        return cls(pipeline, str(source.weights), precision)

    @classmethod
    def requirements(cls, pipeline: Any) -> Iterable[Requirement]:
        """What the parts of a pipeline have to agree in, besides channels and the length of prompts."""
        raise NotImplementedError

    @classmethod
    def _check(cls, pipeline: Any) -> None:
        """Raise `ValueError` for components that are not of this family or do not fit each other."""
        config, vae = cast("Any", pipeline.unet.config), pipeline.vae
        if not isinstance(vae, AutoencoderKL):
            raise ValueError(f"vae is {type(vae).__name__}; AutoencoderKL is needed")
        for key in ("time_cond_proj_dim", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
            if config.get(key) is not None:
                raise ValueError(f"unet {key} is {config[key]!r}: it needs an input that {cls.title} does not have")
        if not isinstance(config.sample_size, int):
            raise ValueError(
                f"unet sample_size is {config.sample_size!r}; one number is needed: the side of square latents"
            )
        required: list[Requirement] = [
            ("unet in_channels", config.in_channels, "vae latent_channels", vae.config["latent_channels"]),
            ("unet out_channels", config.out_channels, "vae latent_channels", vae.config["latent_channels"]),
            *cls.requirements(pipeline),
        ]
        if pipeline.text_encoder is not None:  # a benchmark has random embeddings instead
            required += [
                (f"{name.replace('text_encoder', 'tokenizer')} model_max_length",
                 getattr(pipeline, name.replace("text_encoder", "tokenizer")).model_max_length,
                 "positions of its text encoder", getattr(pipeline, name).config.max_position_embeddings)
                for name in cls.encoders
            ]  # fmt: skip
        for name, value, other, wanted in required:
            if value != wanted:
                raise ValueError(f"{name} is {value}, but the {other} is {wanted}")

    def tap(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]:
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
        # The pipeline of Stable Diffusion 1 insists on this offset, which the scheduler of students does not use.
        scheduler = getattr(diffusers, grid.scheduler).from_config(grid.config, steps_offset=1)
        parts = {**self.pipeline.components, "unet": net, "scheduler": scheduler}
        save_pipeline(self.kind(**parts, **self.settings()), folder)

    def settings(self) -> dict[str, Any]:
        """Arguments for creating a pipeline like this one, besides its components."""
        return {key: value for key, value in self.options.items() if key not in self.pipeline.components}

    def call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Output of `net` for `x_t` (B, C, h, w) at `t` (B,): noise, velocity or x0, depending on `self.prediction`."""
        with self.autocast():
            added = self.added(cond)
            return net(x_t, t, encoder_hidden_states=cond["context"], added_cond_kwargs=added).sample.float()

    def added(self, cond: Any) -> dict[str, Tensor] | None:
        """Inputs of the denoiser besides the embeddings of tokens."""
        return None


class LatentScale:
    """Scaling between the latents of the VAE and those of the denoiser, as in stock pipelines with a UNet."""

    def __init__(self, vae: nn.Module) -> None:
        config: Any = vae.config
        if config.get("shift_factor"):
            raise ValueError(
                f"vae shift_factor is {config['shift_factor']:g}, which stock pipelines with a UNet ignore; set it to "
                "null in vae/config.json for the same result"
            )
        self.factor: float = config["scaling_factor"]
        mean, std = config.get("latents_mean"), config.get("latents_std")
        normalised = mean is not None and std is not None  # the stock pipeline uses both or neither
        self.mean = _per_channel(mean) if normalised else None
        self.std = _per_channel(std) if normalised else None

    def to_denoiser(self, z: Tensor) -> Tensor:
        """From the VAE's latents (B, C, h, w)."""
        if self.mean is None or self.std is None:
            return z * self.factor
        return (z - self.mean.to(z)) * self.factor / self.std.to(z)

    def to_vae(self, x: Tensor) -> Tensor:
        """From the denoiser's latents (B, C, h, w)."""
        if self.mean is None or self.std is None:
            return x / self.factor
        return x * self.std.to(x) / self.factor + self.mean.to(x)


def _per_channel(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def encoder_half(unet: nn.Module) -> nn.Module:
    """A UNet that returns the output of the middle block of `unet`; it shares modules and does not change `unet`."""
    half = shallow_copy(unet)
    half.up_blocks = nn.ModuleList()
    half.conv_norm_out = None
    half.conv_out = nn.Identity()
    return half


def _forget_folder(net: ConfigMixin) -> None:
    """Remove the path that diffusers records when loading and would write into saved configurations."""
    net.register_to_config(_name_or_path="")
