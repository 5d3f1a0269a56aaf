"""PickScore (Kirstain et al., 2023): cosine of picture and prompt in a CLIP ViT-H/14 trained on users' choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import PictureMean, Row
from flashdmd_cli.evaluation.scorers.pictures import CLIP_MEAN, CLIP_STD, normalized, shortest_edge_transformers
from flashdmd_cli.evaluation.scorers.weights import Weights, described, versions

NAME = "pickscore"
FILES = Weights(NAME, "yuvalkirstain/PickScore_v1", ("model.safetensors", "config.json"), "3.94 GB")


class PickScore(PictureMean):
    """Mean cosine, as tables print it; the network's own output is 100 times that."""

    name, heading, direction, unit, scale = NAME, "PickScore", "higher", "cosine", "cosine"

    def prepare(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.folder = instruments.find(FILES)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The cosine of each picture, (B,)."""
        from flashdmd_cli.evaluation.scorers.clip_h import load_pick_score

        net = self.instruments.network(self.folder, lambda: load_pick_score(self.folder, self.instruments.device))
        small = self.instruments.once(
            pictures, ("transformers", net.size), lambda: shortest_edge_transformers(pictures, net.size)
        )
        return net.cosine(normalized(small, CLIP_MEAN, CLIP_STD), [row.prompt for row in rows])

    def provenance(self) -> dict[str, Any]:
        return {
            "weights": described({FILES.hub_id: self.folder / FILES.files[0]}),
            "preprocessing": "Pillow bicubic to shortest edge 224, centre crop",
            "versions": versions("transformers", "pillow"),
            **super().provenance(),
        }
