"""ImageReward (Xu et al., 2023), version 1.0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import PictureMean, Row
from flashdmd_cli.evaluation.scorers.pictures import CLIP_MEAN, CLIP_STD, normalized, shortest_edge
from flashdmd_cli.evaluation.scorers.weights import Weights, described, versions

NAME = "image_reward"
FILES = Weights(NAME, "zai-org/ImageReward", ("ImageReward.pt", "med_config.json"), "1.79 GB")
VOCABULARY = Weights(NAME, "google-bert/bert-base-uncased", ("vocab.txt",), "232 kB")


class ImageReward(PictureMean):
    """Mean reward, in standard deviations of the authors' data."""

    name, heading, direction = NAME, "ImageReward", "higher"
    unit, scale = "standardised reward", "standardised reward"

    def prepare(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.folder = instruments.find(FILES)
        self.vocabulary = instruments.find(VOCABULARY) / VOCABULARY.files[0]

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The reward of each picture, (B,)."""
        from flashdmd_cli.evaluation.scorers.image_reward import load_image_reward

        net = self.instruments.network(
            self.folder, lambda: load_image_reward(self.folder, self.vocabulary, self.instruments.device)
        )
        small = self.instruments.once(
            pictures, ("shortest edge", False, net.size), lambda: shortest_edge(pictures, net.size)
        )
        return net.score(normalized(small, CLIP_MEAN, CLIP_STD), [row.prompt for row in rows])

    def provenance(self) -> dict[str, Any]:
        files = {FILES.hub_id: self.folder / FILES.files[0], VOCABULARY.hub_id: self.vocabulary}
        return {
            "weights": described(files),
            "preprocessing": "Pillow bicubic to shortest edge 224, centre crop; 35 tokens",
            "versions": versions("transformers", "tokenizers", "pillow"),
            **super().provenance(),
        }
