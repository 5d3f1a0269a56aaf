"""FD-DINOv2 (Stein et al., 2023): the Fréchet distance on features that agree better with people than Inception's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flashdmd_cli.evaluation.metrics.frechet import FeatureDistance
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.scorers.weights import Weights, described, versions

FILES = Weights("fd_dinov2", "facebook/dinov2-large", ("model.safetensors", "config.json"), "1.22 GB")


class DinoFeatures:
    """1024 features of DINOv2 ViT-L/14."""

    def __init__(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.folder = instruments.find(FILES)

    def of(self, pictures: Tensor) -> Tensor:
        """(B, 1024) of pictures (B, 3, H, W) uint8."""
        from flashdmd_cli.evaluation.scorers.dino import load_dino

        net = self.instruments.network(self.folder, lambda: load_dino(self.folder, self.instruments.device))
        return self.instruments.once(pictures, "dino", lambda: net.features(pictures))

    def provenance(self) -> dict[str, Any]:
        """For results."""
        return {
            "weights": described({FILES.hub_id: self.folder / FILES.files[0]}),
            "preprocessing": "Pillow bicubic to 224 x 224",
            "versions": versions("transformers", "pillow"),
        }


class FdDinoV2(FeatureDistance):
    """Fréchet distance to real pictures on DINOv2's class token."""

    name, heading, unit = "fd_dinov2", "FD-DINOv2", "squared distance of DINOv2 features"
    min_pictures = 2048

    def prepare(self, instruments: Instruments) -> None:
        self.dino = DinoFeatures(instruments)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The features, (B, 1024)."""
        return self.dino.of(pictures)

    def provenance(self) -> dict[str, Any]:
        return {**self.dino.provenance(), **super().provenance()}
