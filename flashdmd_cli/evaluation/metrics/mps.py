"""MPS, the Multi-dimensional Preference Score (Zhang et al., 2024), its overall dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import PictureMean, Row
from flashdmd_cli.evaluation.scorers.pictures import CLIP_MEAN, CLIP_STD, normalized, shortest_edge_transformers
from flashdmd_cli.evaluation.scorers.weights import Weights, described, versions
from flashdmd_cli.runs.tables import Config

NAME = "mps"
FILES = Weights(NAME, "RE-N-Y/mpsv1", ("model.safetensors",), "4.42 GB", optional=("config.json",))


class MpsOptions(Config):
    """How the prompt is masked."""

    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token of the prompt counts if its likeness to the condition is more than this share of the largest. The
    authors' evaluation has 0.3; their training, and other implementations, have 0.01."""


class MpsScore(PictureMean):
    """Mean MPS."""

    name, heading, direction, unit, scale = NAME, "MPS", "higher", "cosine x 100", "cosine x 100"
    digits = 2
    Options = MpsOptions

    def prepare(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.folder = instruments.find(FILES)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The score of each picture, (B,)."""
        from flashdmd_cli.evaluation.scorers.mps import load_mps

        net = self.instruments.network(self.folder, lambda: load_mps(self.folder, self.instruments.device))
        small = self.instruments.once(
            pictures, ("transformers", net.size), lambda: shortest_edge_transformers(pictures, net.size)
        )
        prompts = [row.prompt for row in rows]
        return net.score(normalized(small, CLIP_MEAN, CLIP_STD), prompts, self.options.threshold)

    def provenance(self) -> dict[str, Any]:
        return {
            "weights": described({FILES.hub_id: self.folder / FILES.files[0]}),
            "preprocessing": "Pillow bicubic to shortest edge 224, centre crop; a mask for each prompt by itself",
            "versions": versions("transformers", "pillow"),
            **super().provenance(),
        }
