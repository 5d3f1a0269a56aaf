"""From a preset and its files to a stock pipeline of diffusers, in float32 on the CPU."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.evaluation.baselines.preset import Lora, Preset
from flashdmd_cli.families.files import read_json
from flashdmd_cli.runs.hub import files_below, network_weights

LORA_LAYER = re.compile(r"lora[._]?(down|A)\.weight$")
"""The first of the two matrices of a LoRA's layer, in the names of kohya, diffusers and peft."""


@dataclass(frozen=True)
class Files:
    """The files of a preset on this machine."""

    base: Path
    """Pipeline folder."""
    denoiser: Path | None = None
    """File or folder."""
    lora: Path | None = None
    """File."""


def load_pipeline(preset: Preset, files: Files) -> Any:
    """The pipeline of a preset, with its denoiser, LoRA and scheduler.

    Raises `Unfit` for tensors that are missing or do not fit; `OSError`, `ValueError` or `SafetensorError` for files
    that cannot be read.
    """
    import diffusers

    kind = getattr(diffusers, preset.pipeline)
    index = read_json(files.base / "model_index.json")
    parts: dict[str, Any] = {part: read_part(files.base / part, index[part]) for part in preset.networks}
    if files.denoiser is not None:
        of_base = files.base / preset.part
        parts[preset.part] = (
            read_part(files.denoiser, index[preset.part])
            if files.denoiser.is_dir()
            else read_denoiser_file(files.denoiser, of_base, index[preset.part])
        )
    options = {"add_watermarker": False} if preset.pipeline == "StableDiffusionXLPipeline" else {}
    left_out = dict.fromkeys(preset.without)
    pipeline = kind.from_pretrained(files.base, **parts, **left_out, **options, local_files_only=True)
    if preset.lora is not None and files.lora is not None:
        merge_lora(pipeline, preset.part, preset.lora, files.lora)
    pipeline.scheduler = make_scheduler(preset, pipeline.scheduler)
    pipeline.vae.enable_slicing()  # one picture at a time: a decoder at 1024 pixels needs gigabytes
    pipeline.set_progress_bar_config(disable=True)
    for part in (preset.part, *preset.networks):
        getattr(pipeline, part).eval().requires_grad_(False)
    return pipeline


def network_class(entry: list[str]) -> Any:
    """The class that `model_index.json` names as `[library, class]`."""
    library, name = entry
    if library not in ("diffusers", "transformers"):
        raise Unfit(f"model_index.json: {name} is of {library}", "parts of diffusers and transformers are read")
    return getattr(importlib.import_module(library), name)


def read_part(folder: Path, entry: list[str]) -> Any:
    """A network from its folder; Unfit if it lacks tensors, which the libraries would initialise at random."""
    weights = network_weights(set(files_below(folder)), half_first=False)
    variant = next((name for name in ("fp16", "bf16") if weights and f".{name}" in weights[0]), None)
    net, report = network_class(entry).from_pretrained(
        folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise Unfit(f"{folder.name}/ lacks {missing[0]} and {len(missing) - 1} more tensors", "download it again")
    return net.float()


def read_denoiser_file(path: Path, folder: Path, entry: list[str]) -> Any:
    """A denoiser from one safetensors file, configured by `folder/config.json`; Unfit if a tensor does not fit."""
    from safetensors.torch import load_file

    kind = network_class(entry)
    with torch.device("meta"):
        net = kind.from_config(kind.load_config(folder))
    try:
        net.load_state_dict(load_file(path), strict=True, assign=True)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n")[1:2] or [str(error)]).strip()
        raise Unfit(f"{path.name}: does not fit the base's denoiser: {first[:200]}", "another file?") from None
    return net.float()


def merge_lora(pipeline: Any, part: str, lora: Lora, path: Path) -> None:
    """Add a LoRA to the weights of the pipeline; Unfit if a layer of it finds no place.

    The libraries warn at most of layers without a place, and draw without them.
    """
    from diffusers.utils import logging
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        expected = sum(bool(LORA_LAYER.search(name)) for name in file.keys())  # noqa: SIM118
    if not expected:
        raise Unfit(f"{path.name}: is no LoRA", "no name of its tensors is that of a LoRA")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it would log is raised here
    try:
        found = (merge_peft if lora.is_peft else merge_named)(pipeline, part, lora, path)
    except (ValueError, RuntimeError, KeyError) as error:
        lines = [" ".join(line.split()) for line in str(error).split("\n") if line.strip()]
        raise Unfit(
            f"{path.name}: does not fit the base: {' '.join(lines[:2])[:200]}", "made for another model?"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    if found != expected:
        raise Unfit(f"{path.name}: {found} of its {expected} layers fit the base", "made for another model?")


def merge_peft(pipeline: Any, part: str, lora: Lora, path: Path) -> int:
    """Merge a LoRA that peft saved into the denoiser; the number of its layers."""
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(getattr(pipeline, part), str(path.parent))
    found = lora_layers(tuned)
    for layer in found:
        layer.scale_layer(lora.scale)
    setattr(pipeline, part, tuned.merge_and_unload())
    return len(found)


def merge_named(pipeline: Any, part: str, lora: Lora, path: Path) -> int:
    """Merge a LoRA with names that diffusers knows into denoiser and text encoders; the number of its layers."""
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    found = lora_layers(getattr(pipeline, part), pipeline.text_encoder, pipeline.text_encoder_2)
    pipeline.fuse_lora(lora_scale=lora.scale)
    pipeline.unload_lora_weights()
    return len(found)


def lora_layers(*networks: Any) -> list[Any]:
    """The layers of networks that have a LoRA."""
    from peft.tuners.lora import LoraLayer

    return [layer for net in networks if net is not None for layer in net.modules() if isinstance(layer, LoraLayer)]


def make_scheduler(preset: Preset, own: Any) -> Any:
    """The preset's scheduler, configured as the base's except for what the preset changes."""
    import diffusers

    if preset.scheduler is None:
        return own
    if (kind := getattr(diffusers, preset.scheduler.name, None)) is None:
        raise Unfit(f"scheduler.name: diffusers {diffusers.__version__} has no {preset.scheduler.name}")
    if preset.timestep_shift is None:
        return kind.from_config(own.config, **preset.scheduler.config)
    from flashdmd_cli.evaluation.baselines.shifted import ShiftedLCMScheduler

    scheduler = ShiftedLCMScheduler.from_config(own.config, **preset.scheduler.config)
    scheduler.shift = preset.timestep_shift
    return scheduler
