"""HPSv2 (Wu et al., 2023), in its two versions, whose values are not comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import PictureMean, Row
from flashdmd_cli.evaluation.scorers.pictures import CLIP_MEAN, CLIP_STD, longest_edge, normalized
from flashdmd_cli.evaluation.scorers.weights import Weights, described, versions


class HpsV2(PictureMean):
    """Mean HPSv2.0: cosine of picture and prompt in a CLIP ViT-H/14 trained on human choices."""

    name, heading, direction, unit, scale = "hpsv2", "HPSv2", "higher", "cosine", "cosine"
    files: ClassVar[Weights] = Weights("hpsv2", "xswu/HPSv2", ("HPS_v2_compressed.pt",), "1.97 GB")

    def prepare(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.path = instruments.find(self.files) / self.files.files[0]

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The cosine of each picture, (B,)."""
        from flashdmd_cli.evaluation.scorers.clip import load_hps

        net = self.instruments.network(self.path, lambda: load_hps(self.path, self.instruments.device))
        small = self.instruments.once(pictures, ("longest edge", net.size), lambda: longest_edge(pictures, net.size))
        return net.cosine(normalized(small, CLIP_MEAN, CLIP_STD), [row.prompt for row in rows])

    def provenance(self) -> dict[str, Any]:
        return {
            "weights": described({self.files.hub_id: self.path}),
            "preprocessing": "bicubic with antialiasing on floats to longest edge 224, black borders",
            "versions": versions("open_clip_torch", "torchvision"),
            **super().provenance(),
        }


class HpsV21(HpsV2):
    """Mean HPSv2.1: the same network with the weights of 2023-11."""

    name, heading = "hpsv21", "HPSv2.1"
    files = Weights("hpsv21", "xswu/HPSv2", ("HPS_v2.1_compressed.pt",), "1.97 GB")
