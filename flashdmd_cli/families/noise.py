"""The noise schedule of a teacher with discrete betas, from its stock scheduler; others raise `ValueError`.

Only the betas and `prediction_type` of the scheduler are used, which describe the training of the network. Its class
and sampling settings (timestep spacing, offsets, clipping, thresholding, Karras sigmas) are ignored.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import LCMScheduler, SchedulerMixin

from flashdmd_cli.core.grid import NUM_TRAIN_TIMESTEPS
from flashdmd_cli.core.schedules import PREDICTIONS, Prediction, VPSchedule

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Beta schedules that every stock scheduler can compute by name; for others, the betas themselves are stored."""
FOREIGN = {"timestep_type": "continuous", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
"""Unsupported settings of schedulers with betas: flow matching, or continuous noise levels as timesteps."""
SDXL_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The betas of SDXL and of Stable Diffusion 1 and 2."""


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
