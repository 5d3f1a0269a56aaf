"""Identification of model folders from configurations; reads no weights, needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashdmd_cli.core.grid import FLOW_SCHEDULER
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import read_json, vae_folder, weight_files
from flashdmd_cli.families.sd3.facts import SD3

T5_TOKENS = 256
"""Tokens of the third text encoder; the default of the stock pipeline."""
SHIFT = 3.0
"""SD3's own shift (Esser et al. 2024, section 5.3.2)."""


def has_t5(folder: Path) -> bool:
    """Whether the third text encoder of a pipeline folder is used."""
    return "text_encoder_3" in SD3.extras(folder)


def refuse_folder(folder: Path) -> None:
    """Raise Unfit, describing what was found, unless `folder` is a complete SD3 pipeline that can be distilled."""
    if not (folder / "model_index.json").is_file():
        raise Unfit("has no model_index.json, so it is no pipeline folder", "a complete StableDiffusion3Pipeline")
    name = read_json(folder / "model_index.json").get("_class_name", "a pipeline without a class")
    if not str(name).startswith(SD3.pipeline):
        raise Unfit(f"is a {name}, which is not SD3")
    for part in SD3.networks:
        weight_files(folder / part)
        if not (folder / part / "config.json").is_file():
            raise Unfit(f"{part}/ has no config.json", "a complete StableDiffusion3Pipeline folder")
    for part in SD3.settings:
        if not (folder / part).is_dir():
            raise Unfit(f"has no {part}/", "a complete StableDiffusion3Pipeline folder")
    net = read_json(folder / "transformer" / "config.json")
    channels = net.get("in_channels", 16)
    outputs = net.get("out_channels") or channels
    if channels != outputs:
        raise Unfit(
            f"takes {channels} channels and gives {outputs}: it edits pictures, and draws none from noise alone"
        )


def refuse_vae(place: Path) -> None:
    """Raise Unfit, describing what was found, unless `place` is a folder with an autoencoder."""
    folder = vae_folder(place)
    weight_files(folder)
    kind = read_json(folder / "config.json").get("_class_name") if (folder / "config.json").is_file() else None
    if kind != "AutoencoderKL":
        raise Unfit(f"is {f'a {kind}' if kind else 'a folder without config.json'}, not an AutoencoderKL")


def dimensions(folder: Path) -> Dimensions:
    """Dimensions of an SD3 pipeline folder; raises `OSError`, `ValueError` or `KeyError` for any other folder."""

    def config(part: str, name: str = "config.json") -> dict[str, Any]:
        return read_json(folder / part / name)

    net, vae = config("transformer"), config("vae")
    side, channels = int(net["sample_size"]), int(net["in_channels"])
    tokens = int(config("tokenizer", "tokenizer_config.json")["model_max_length"])
    # Without T5, one token of zeros stands for all of its tokens (attention.py).
    tokens += T5_TOKENS if has_t5(folder) else 1
    text = {
        "context": (tokens, int(net["joint_attention_dim"])),
        "pooled": (int(net["pooled_projection_dim"]),),
    }
    return Dimensions(side * 2 ** (len(vae["block_out_channels"]) - 1), (channels, side, side), text)


def is_student(folder: Path) -> bool:
    """Whether a pipeline folder is a few-step student, judged by its scheduler configuration."""
    try:
        config = read_json(folder / "scheduler" / "scheduler_config.json")
    except (OSError, Unfit):
        return False
    return config.get("_class_name") == FLOW_SCHEDULER
