"""The settings of a teacher that define its diffusion process and latents; unsupported ones raise `ValueError`.

Only the betas and `prediction_type` of the scheduler are used, which describe the training of the network. Its class
and sampling settings (timestep spacing, offsets, clipping, thresholding, Karras sigmas) are ignored.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import AutoencoderKL, LCMScheduler, SchedulerMixin, StableDiffusionXLPipeline
from torch import Tensor, nn

from flashdmd_cli.core.grid import NUM_TRAIN_TIMESTEPS
from flashdmd_cli.core.schedules import PREDICTIONS, Prediction, VPSchedule

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Beta schedules that every stock scheduler can compute by name; for others, the betas themselves are stored."""
FOREIGN = {"timestep_type": "continuous", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
"""Unsupported settings of schedulers with betas: flow matching, or continuous noise levels as timesteps."""
SDXL_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NUM_TIME_IDS = 6
"""Original height and width, crop top and left, target height and width."""


def noise_settings(scheduler: SchedulerMixin) -> dict[str, Any]:
    """Noise schedule and prediction type of a stock scheduler with betas, as arguments that all of them accept.

    `rescale_betas_zero_snr` is used even if the scheduler class does not support it (Heun, LMS, DPM++ single step): it
    describes how the network was trained, and stays in the file when somebody changes the class.
    """
    config, name = dict(scheduler.config), type(scheduler).__name__
    foreign = next((f"{key} {value}" for key, value in FOREIGN.items() if config.get(key) == value), None)
    if foreign or "beta_schedule" not in config or "snr_shift_scale" in config or not hasattr(scheduler, "betas"):
        raise ValueError(
            f"scheduler {name}{f' with {foreign}' if foreign else ''} is not one over discrete betas: teachers of EDM "
            f"and flow matching are not supported"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"scheduler prediction_type {prediction!r} is not one of {', '.join(PREDICTIONS)}")
    betas = config.get("trained_betas")
    if betas is None and config["beta_schedule"] not in BETA_SCHEDULES:
        betas = scheduler.betas
    if betas is not None:
        betas = torch.as_tensor(betas, dtype=torch.float32).tolist()
    length = config["num_train_timesteps"] if betas is None else len(betas)
    if length != NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"scheduler num_train_timesteps is {length}; only {NUM_TRAIN_TIMESTEPS} is supported")
    settings = {
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "beta_start": config["beta_start"],
        "beta_end": config["beta_end"],
        "beta_schedule": config["beta_schedule"] if betas is None else "linear",
        "trained_betas": betas,
        "rescale_betas_zero_snr": bool(config.get("rescale_betas_zero_snr", False)),
        "prediction_type": prediction,
        # Only for deterministic samplers; the few-step grid always ends in x0.
        "set_alpha_to_one": bool(config.get("set_alpha_to_one", False)),
    }
    if prediction == "epsilon" and noise_schedule(settings).alphas_cumprod[-1] == 0:
        raise ValueError(
            "scheduler has rescale_betas_zero_snr with prediction_type epsilon: a network that starts in pure noise "
            "has to predict v_prediction or sample"
        )
    return settings


def noise_schedule(settings: dict[str, Any]) -> VPSchedule:
    """The schedule for `noise_settings`, computed by `LCMScheduler`, the scheduler of exported students.

    With zero terminal SNR its last alpha_bar is 0, as in training; some stock samplers (Euler, DPM++, UniPC) use 2**-24
    instead to avoid a division by zero.
    """
    betas = {key: value for key, value in settings.items() if key != "prediction_type"}
    return VPSchedule(LCMScheduler(**betas).alphas_cumprod)


def prediction_of(settings: dict[str, Any]) -> Prediction:
    """The network's prediction type."""
    return cast("Prediction", settings["prediction_type"])


class LatentScale:
    """Scaling between the latents of the VAE and those of the denoiser, as in stock SDXL pipelines."""

    def __init__(self, vae: nn.Module) -> None:
        config: Any = vae.config
        if config.get("shift_factor"):
            raise ValueError(
                f"vae shift_factor is {config['shift_factor']:g}, which stock SDXL pipelines ignore; set it to null in "
                "vae/config.json for the same result"
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


def check_parts(pipeline: StableDiffusionXLPipeline) -> None:
    """Raise `ValueError` for components that are not SDXL's or do not fit each other.

    SDXL's denoiser takes token embeddings, a pooled embedding and six sizes, and operates on the latents of its VAE.
    """
    config, vae = cast("Any", pipeline.unet.config), pipeline.vae
    if not isinstance(vae, AutoencoderKL):
        raise ValueError(f"vae is {type(vae).__name__}; AutoencoderKL is needed")
    if config.addition_embed_type != "text_time":
        raise ValueError(f"unet addition_embed_type is {config.addition_embed_type!r}; SDXL's is 'text_time'")
    for key in ("time_cond_proj_dim", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(key) is not None:
            raise ValueError(f"unet {key} is {config[key]!r}: it needs an input that SDXL's denoiser does not have")
    if not isinstance(config.sample_size, int):
        raise ValueError(
            f"unet sample_size is {config.sample_size!r}; one number is needed: the side of square latents"
        )
    pairs: list[tuple[str, Any, str, Any]] = [
        ("unet in_channels", config.in_channels, "vae latent_channels", vae.config["latent_channels"]),
        ("unet out_channels", config.out_channels, "vae latent_channels", vae.config["latent_channels"]),
    ]
    if pipeline.text_encoder is not None:  # a benchmark has random embeddings instead
        pooled = pipeline.text_encoder_2.config.projection_dim
        width = pipeline.text_encoder.config.hidden_size + pipeline.text_encoder_2.config.hidden_size
        pairs += [
            ("unet cross_attention_dim", config.cross_attention_dim, "width of both text encoders", width),
            ("unet projection_class_embeddings_input_dim", config.projection_class_embeddings_input_dim,
             f"size of pooled text and {NUM_TIME_IDS} sizes", NUM_TIME_IDS * config.addition_time_embed_dim + pooled),
        ]  # fmt: skip
        pairs += [
            (f"{name} model_max_length", getattr(pipeline, name).model_max_length, "positions of its text encoder",
             getattr(pipeline, name.replace("tokenizer", "text_encoder")).config.max_position_embeddings)
            for name in ("tokenizer", "tokenizer_2")
        ]  # fmt: skip
    for name, value, other, wanted in pairs:
        if value != wanted:
            raise ValueError(f"{name} is {value}, but the {other} is {wanted}")
