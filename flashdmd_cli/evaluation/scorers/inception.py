"""Inception features as clean-fid computes them: its resizing, and its wrapper of the TorchScript network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor

from flashdmd_cli.evaluation.scorers.exact import exact
from flashdmd_cli.evaluation.scorers.files import AGAIN
from flashdmd_cli.runs.errors import InputError

_resize = build_resizer("clean")


def prepared(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) uint8 at 299 x 299 on [0, 255], float32: each channel resized as floats by Pillow."""
    arrays = [_resize(picture) for picture in pictures.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


class Inception:
    """The 2048 features before the classifier."""

    def __init__(self, net: InceptionV3W, device: torch.device) -> None:
        self.net = net.to(device).eval()
        self.device = device

    @exact
    def features(self, pictures: Tensor) -> Tensor:
        """(B, 2048) of pictures (B, 3, H, W) uint8, on the CPU."""
        found: Tensor = self.net(prepared(pictures).to(self.device)).float().cpu()
        return found


def load_inception(path: Path, device: torch.device) -> Inception:
    """The network in the file `inception-2015-12-05.pt`."""
    try:
        return Inception(InceptionV3W(str(path.parent), download=False), device)
    except (RuntimeError, AttributeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not readable as TorchScript: {first}", AGAIN) from None
