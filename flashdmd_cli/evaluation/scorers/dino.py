"""DINOv2 features (Oquab et al., 2023), as Stein et al. (2023) use them for distances between sets of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from flashdmd_cli.evaluation.scorers.exact import exact
from flashdmd_cli.evaluation.scorers.files import AGAIN, read_json
from flashdmd_cli.evaluation.scorers.pictures import IMAGENET_MEAN, IMAGENET_STD, each, normalized
from flashdmd_cli.runs.errors import InputError

SIZE = 224


class Dino:
    """The class token after the last norm."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self.net = net.to(device)
        self.device = device

    @exact
    def features(self, pictures: Tensor) -> Tensor:
        """(B, D) of pictures (B, 3, H, W) uint8, on the CPU; resized to 224 x 224, bicubic, whatever their shape."""
        resized = each(pictures, lambda image: image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        pixels = normalized(resized, IMAGENET_MEAN, IMAGENET_STD).to(self.device)
        found: Tensor = self.net(pixels).last_hidden_state[:, 0].float().cpu()
        return found


def load_dino(folder: Path, device: torch.device) -> Dino:
    """DINOv2 from the folder of its repository. transformers translates the names of the published file."""
    weights = folder / "model.safetensors"
    config = Dinov2Config.from_dict(read_json(folder / "config.json"))
    try:
        net, report = Dinov2Model.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{weights}: not readable as weights: {first}", AGAIN) from None
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{weights}: {missing[0]} is missing", AGAIN)
    return Dino(net.requires_grad_(False).eval(), device)
