"""FID and patch-FID by DMD2's protocol, on clean-fid's resizing and Inception features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torchvision.transforms import functional as vision

from flashdmd_cli.evaluation.metrics.frechet import FeatureDistance
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.evaluation.scorers.pictures import each, square
from flashdmd_cli.evaluation.scorers.weights import described, remote, versions
from flashdmd_cli.runs.tables import Config

URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
FILE = remote("fid", URL, "96 MB", "NVIDIA")
PATCH = 299
RELIABLE = 2048
"""With fewer pictures than features the covariance is singular."""


class InceptionFeatures:
    """2048 Inception features of whole pictures, or of the patch in their middle."""

    def __init__(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.path = instruments.find(FILE)

    def of(self, pictures: Tensor, resolution: int | None) -> Tensor:
        """(B, 2048) of pictures (B, 3, H, W) uint8: of the centre square, resized to `resolution` with Lanczos' filter;
        without it of the 299 x 299 in the middle, or of everything where a picture is smaller."""
        from flashdmd_cli.evaluation.scorers.inception import load_inception

        net = self.instruments.network(self.path, lambda: load_inception(self.path, self.instruments.device))

        def compute() -> Tensor:
            if resolution is not None:
                return net.features(square(pictures, resolution))
            if min(pictures.shape[-2:]) < PATCH:
                return net.features(pictures)
            return net.features(each(pictures, lambda image: vision.center_crop(image, [PATCH, PATCH])))

        return self.instruments.once(pictures, ("inception", resolution), compute)

    def provenance(self, resolution: int | None) -> dict[str, Any]:
        """For results."""
        first = (
            f"centre square, Lanczos to {resolution}" if resolution else "centre crop of 299 where there are as many"
        )
        return {
            "weights": described({URL: self.path}),
            "preprocessing": f"{first}; clean-fid's resizing to 299",
            "versions": versions("clean-fid", "pillow", "torchvision"),
        }


class FidOptions(Config):
    """How pictures are prepared."""

    resolution: Annotated[int, Field(ge=32)] = 512
    """Side to which the centre square is resized before clean-fid resizes it to 299: DMD2's `--eval_res`."""


class OnInception(Metric):
    """A metric of the Inception features of whole pictures."""

    compares = True
    Options = FidOptions

    def prepare(self, instruments: Instruments) -> None:
        self.inception = InceptionFeatures(instruments)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The features, (B, 2048)."""
        return self.inception.of(pictures, self.options.resolution)

    def provenance(self) -> dict[str, Any]:
        return {**self.inception.provenance(self.options.resolution), **super().provenance()}


class Fid(OnInception, FeatureDistance):
    """Fréchet Inception distance to the suite's real pictures."""

    name, heading, unit = "fid", "FID", "squared distance of Inception features"
    min_pictures = RELIABLE


class PatchFid(FeatureDistance):
    """FID of the 299 x 299 pixels in the middle, without resizing: it sees fine texture."""

    name, heading, unit = "patch_fid", "patch-FID", "squared distance of Inception features"
    min_pictures = RELIABLE

    def prepare(self, instruments: Instruments) -> None:
        self.inception = InceptionFeatures(instruments)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The features of the patch, (B, 2048)."""
        return self.inception.of(pictures, None)

    def provenance(self) -> dict[str, Any]:
        return {**self.inception.provenance(None), **super().provenance()}
