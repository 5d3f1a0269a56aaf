"""The metrics whose values come from the package of their authors instead of from the networks of this one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from flashdmd_cli.evaluation.backends.package import Package
from flashdmd_cli.evaluation.backends.upstream import build, first_line, versions_of_pins
from flashdmd_cli.evaluation.metrics.hps import HpsV2, HpsV21
from flashdmd_cli.evaluation.metrics.image_reward import FILES, ImageReward
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Metric, PictureMean, Row


class FromPackage(PictureMean):
    """Goes before the class of a metric, whose weights, name and scale it keeps."""

    backend = "upstream"
    instruments: Instruments

    def prepare(self, instruments: Instruments) -> None:
        """Find the weights, then the environment, which is built if it is not there; so both before any drawing."""
        super().prepare(instruments)
        self.python = build(instruments.reporter)

    def first_line(self) -> dict[str, Any]:
        """Which metric, and where its files are."""
        raise NotImplementedError

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The score of each picture, (B,), NaN where the package fails on it. The packages read files, so the pictures,
        which by then are RGB of 8 bits, are written as PNG."""
        package = self.instruments.network(
            ("upstream", self.name), lambda: Package(self.python, self.first_line(), self.instruments.device)
        )
        scores = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "picture.png")
            for picture, row in zip(pictures, rows, strict=True):
                to_pil_image(picture).save(path, compress_level=1)
                scores.append(package.score(path, row.prompt))
        return torch.tensor(scores, dtype=torch.float64)

    def provenance(self) -> dict[str, Any]:
        return {
            **super().provenance(),
            "backend": self.backend,
            "preprocessing": "that of the authors' package",
            "versions": versions_of_pins(),
        }


class UpstreamImageReward(FromPackage, ImageReward):
    """ImageReward by `image-reward`."""

    def first_line(self) -> dict[str, Any]:
        return first_line(self.name, self.folder / FILES.files[0], self.vocabulary.parent)


class UpstreamHpsV2(FromPackage, HpsV2):
    """HPSv2.0 by `hpsv2`."""

    def first_line(self) -> dict[str, Any]:
        return first_line(self.name, self.path)


class UpstreamHpsV21(UpstreamHpsV2, HpsV21):
    """HPSv2.1 by `hpsv2`."""


UPSTREAM: dict[str, type[Metric]] = {each.name: each for each in (UpstreamImageReward, UpstreamHpsV2, UpstreamHpsV21)}
"""By name, for `--backend upstream`; the other metrics have no package of their authors that could be installed."""
