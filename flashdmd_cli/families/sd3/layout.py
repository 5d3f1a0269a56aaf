"""Identification of model folders from configurations; reads no weights, needs no torch."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.core.grid import FLOW_SCHEDULER
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families import layout
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import read_json
from flashdmd_cli.families.sd3.facts import SD3

T5_TOKENS = 256
"""Tokens of the third text encoder; the default of the stock pipeline."""
SHIFT = 3.0
"""SD3's own shift (Esser et al. 2024, section 5.3.2)."""

ENCODERS = ("text_encoders.clip_l.", "text_encoders.clip_g.")
"""Prefixes of the text encoders' tensor names in the original layout."""


def has_t5(folder: Path) -> bool:
    """Whether the third text encoder of a pipeline folder is used."""
    return "text_encoder_3" in SD3.extras(folder)


def refuse(place: Path) -> None:
    """Raise Unfit, describing what was found, unless `place` is a complete SD3 model that can be distilled."""
    if place.is_file():
        layout.refuse_file(place, SD3, {"CLIP-L": ENCODERS[:1], "CLIP-G": ENCODERS[1:]})
    else:
        layout.refuse_folder(place, SD3)


def dimensions(folder: Path) -> Dimensions:
    """Dimensions of an SD3 pipeline folder; raises `OSError`, `ValueError` or `KeyError` for any other folder."""
    net = read_json(folder / "transformer" / "config.json")
    # Without T5, one token of zeros stands for all of its tokens (attention.py).
    tokens = layout.tokens(folder) + (T5_TOKENS if has_t5(folder) else 1)
    text = {"context": (tokens, int(net["joint_attention_dim"])), "pooled": (int(net["pooled_projection_dim"]),)}
    return layout.dimensions(folder, "transformer", text)


def is_student(folder: Path) -> bool:
    """Whether a pipeline folder is a few-step student, judged by its scheduler configuration."""
    try:
        config = read_json(folder / "scheduler" / "scheduler_config.json")
    except (OSError, Unfit):
        return False
    return config.get("_class_name") == FLOW_SCHEDULER
