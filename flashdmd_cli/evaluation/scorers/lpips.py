"""LPIPS (Zhang et al., 2018), version 0.1 on AlexNet: a weighted distance of features of five layers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import alexnet

from flashdmd_cli.evaluation.scorers.exact import exact
from flashdmd_cli.evaluation.scorers.files import AGAIN, fill, read_tensors
from flashdmd_cli.runs.errors import InputError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS's own normalisation of pixels on [-1, 1]."""
TAPS = (1, 4, 7, 9, 11)
"""Layers of AlexNet after which features are compared: each of its rectifiers."""

LINEAR = "alex.pth"


class Lpips:
    """Distances between pictures of one size."""

    def __init__(self, features: torch.nn.Sequential, weights: list[Tensor], device: torch.device) -> None:
        self.layers = features.to(device)
        self.weights = [each.to(device) for each in weights]
        self.device = device

    @exact
    def embed(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D) whose squared Euclidean distances are LPIPS, for pixels (B, 3, H, W) on [-1, 1].

        LPIPS is a sum of w (a - b)^2 over channels, averaged over places: so sqrt(w / places) scales the features.
        """
        found = (pixels - pixels.new_tensor(SHIFT).view(-1, 1, 1)) / pixels.new_tensor(SCALE).view(-1, 1, 1)
        found, parts = found.to(self.device), []
        for index, layer in enumerate(self.layers):
            found = layer(found)
            if index in TAPS:
                unit = found / (found.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                weight = self.weights[TAPS.index(index)].clamp(min=0).view(1, -1, 1, 1)
                parts.append((unit * (weight / (unit.shape[-2] * unit.shape[-1])).sqrt()).flatten(1))
            if index == TAPS[-1]:
                break
        return torch.cat(parts, dim=1)

    def between(self, pixels: Tensor) -> Tensor:
        """Mean LPIPS over all pairs of `K` pictures (K, 3, H, W) on [-1, 1]: a number, float64."""
        vectors = self.embed(pixels).double()
        return torch.pdist(vectors).square().mean().cpu()


def linear_weights(weights_dir: Path | None) -> Path | None:
    """The file of LPIPS's linear layers: in `weights_dir/lpips`, or in the installed package `lpips`; or None."""
    if weights_dir is not None and (own := weights_dir / "lpips" / LINEAR).is_file():
        return own
    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "weights" / "v0.1" / LINEAR


def load_lpips(linear: Path, trunk: Path, device: torch.device) -> Lpips:
    """LPIPS from its linear layers and torchvision's AlexNet."""
    features = alexnet(weights=None).features
    own = {name.removeprefix("features."): value for name, value in read_tensors(trunk).items() if "features." in name}
    fill(features, own, trunk)
    tensors = read_tensors(linear)
    try:
        weights = [tensors[f"lin{i}.model.1.weight"].flatten() for i in range(len(TAPS))]
    except KeyError as error:
        raise InputError(f"{linear}: holds no {error} of LPIPS", AGAIN) from None
    return Lpips(features, weights, device)
