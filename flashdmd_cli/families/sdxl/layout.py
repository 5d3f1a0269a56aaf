"""Identification of SDXL folders and files; reads no weights, needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families import layout
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import read_json, read_shapes
from flashdmd_cli.families.sdxl.facts import SDXL

EMBEDDERS = ("conditioner.embedders.0.", "conditioner.embedders.1.")
"""Prefixes of the text encoders' tensor names in the original layout."""
REFINER = "is the SDXL refiner, which starts from pictures that another model drew"


def refuse(place: Path) -> None:
    """Raise Unfit, describing what was found, unless `place` is a complete SDXL model that can be distilled."""
    if place.is_file():
        if place.suffix == ".safetensors":
            names = list(read_shapes(place))
            if any(name.startswith(f"{EMBEDDERS[0]}model.") for name in names) and not any(
                name.startswith(EMBEDDERS[1]) for name in names
            ):
                raise Unfit(REFINER)
        parts = {"first text encoder": EMBEDDERS[:1], "second text encoder": EMBEDDERS[1:]}
        layout.refuse_file(place, SDXL, parts)
        return
    if (place / "unet" / "config.json").is_file() and (place / "model_index.json").is_file():
        config = read_json(place / "unet" / "config.json")
        layout.refuse_denoiser(config)
        if config.get("addition_embed_type") != "text_time":
            raise Unfit("is not SDXL: its denoiser takes no picture sizes (Stable Diffusion 1 and 2 do not)")
        if _is_refiner(config, place):
            raise Unfit(REFINER)
    layout.refuse_folder(place, SDXL)


def _is_refiner(unet: Mapping[str, Any], folder: Path) -> bool:
    """Whether a UNet takes five sizes, as the refiner's does, not six."""
    try:
        width = read_json(folder / "text_encoder_2" / "config.json")["projection_dim"]
    except (OSError, KeyError):
        return False
    per_number = unet.get("addition_time_embed_dim") or 0
    return bool(unet.get("projection_class_embeddings_input_dim") == 5 * per_number + width)


def dimensions(folder: Path) -> Dimensions:
    """Dimensions of an SDXL pipeline folder; raises `OSError`, `ValueError` or `KeyError` for any other folder."""
    unet, encoder = (read_json(folder / part / "config.json") for part in ("unet", "text_encoder_2"))
    context = (layout.tokens(folder), int(unet["cross_attention_dim"]))
    return layout.dimensions(folder, "unet", {"context": context, "pooled": (int(encoder["projection_dim"]),)})
