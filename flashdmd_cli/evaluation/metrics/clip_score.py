"""CLIP score: cosine of picture and prompt in OpenAI's ViT-B/32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import PictureMean, Row
from flashdmd_cli.evaluation.scorers.pictures import CLIP_MEAN, CLIP_STD, normalized, shortest_edge, square
from flashdmd_cli.evaluation.scorers.weights import Weights, described, versions
from flashdmd_cli.runs.tables import Config

NAME = "clip"
FILES = Weights(
    NAME, "timm/vit_base_patch32_clip_224.openai", ("open_clip_model.safetensors", "open_clip_config.json"), "605 MB"
)
PREFIX = "A photo depicts "
"""What DMD2 puts before each caption."""
CROP = 256
"""Side of DMD2's centre square."""


class ClipOptions(Config):
    """Off by default; both together are DMD2's evaluation."""

    prefix: bool = False
    """Whether `A photo depicts ` stands before each prompt."""
    crop: bool = False
    """Whether pictures are first cut to their centre square and resized to 256 x 256 with Lanczos' filter."""


class ClipScore(PictureMean):
    """Mean cosine of picture and prompt."""

    name, heading, direction, unit, scale = NAME, "CLIP score", "higher", "cosine", "cosine"
    Options = ClipOptions

    def prepare(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.folder = instruments.find(FILES)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The cosine of each picture, (B,)."""
        from flashdmd_cli.evaluation.scorers.clip import load_clip

        net = self.instruments.network(self.folder, lambda: load_clip(self.folder, self.instruments.device))
        cut = self.instruments.once(pictures, "square", lambda: square(pictures, CROP)) if self.options.crop else None
        small = self.instruments.once(
            pictures,
            ("shortest edge", self.options.crop, net.size),
            lambda: shortest_edge(pictures if cut is None else cut, net.size),
        )
        prefix = PREFIX if self.options.prefix else ""
        return net.cosine(normalized(small, CLIP_MEAN, CLIP_STD), [prefix + row.prompt for row in rows])

    def provenance(self) -> dict[str, Any]:
        first = "centre square, Lanczos to 256, " if self.options.crop else ""
        return {
            "weights": described({FILES.hub_id: self.folder / FILES.files[0]}),
            "preprocessing": f"{first}Pillow bicubic to shortest edge 224, centre crop; quick GELU",
            "versions": versions("open_clip_torch", "pillow"),
            **super().provenance(),
        }
