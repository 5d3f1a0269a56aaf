"""How different pictures of one prompt are: Vendi score and mean LPIPS within groups of the same prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flashdmd_cli.core.pictures import as_float
from flashdmd_cli.evaluation.metrics.fd_dinov2 import DinoFeatures
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, mean
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.evaluation.scorers.pictures import each
from flashdmd_cli.evaluation.scorers.weights import WeightsMissing, described, remote, versions

SIDE = 512
"""Pictures are compared by LPIPS at this size, as in DMD2's evaluation."""
ALEXNET = remote("lpips", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "244 MB", "torchvision")


def vendi(features: Tensor) -> float:
    """Vendi score (Friedman and Dieng, 2023) of `K` pictures with features (K, D): how many different ones there are in
    effect, from 1 to K. The exponential of the entropy of the eigenvalues of their cosines over K."""
    unit = F.normalize(features.double(), dim=-1)
    shares = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp(min=0)
    return float((-torch.special.xlogy(shares, shares).sum()).exp())


class OfGroups(Metric):
    """A mean over groups of pictures of the same prompt."""

    direction, of_groups, least = "higher", True, 2

    def takes(self, row: Row) -> bool:
        """Those of which there are several of one prompt."""
        return row.group is not None

    def members(self, numbers: Tensor, group: Tensor) -> list[Tensor]:
        """The rows of each group of at least two."""
        found = [numbers[group == which] for which in group.unique()]
        some = [rows for rows in found if len(rows) > 1]
        if not some:
            raise ValueError(f"{self.name} needs at least two pictures of a prompt")
        return some


class Vendi(OfGroups):
    """Mean Vendi score within prompts, on DINOv2 features."""

    name, heading, unit = "vendi", "Vendi", "effective number of different pictures"
    digits = 2

    def prepare(self, instruments: Instruments) -> None:
        self.dino = DinoFeatures(instruments)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Number of the group, then the features, (B, 1 + 1024)."""
        group = torch.tensor([[float(row.group or 0)] for row in rows])
        return torch.cat([group, self.dino.of(pictures)], dim=1)

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        groups = self.members(drawn[:, 1:], drawn[:, 0])
        return {self.name: mean(torch.tensor([vendi(rows) for rows in groups], dtype=torch.float64))}

    def provenance(self) -> dict[str, Any]:
        return {**self.dino.provenance(), **super().provenance()}


class LpipsDiversity(OfGroups):
    """Mean LPIPS (AlexNet) over all pairs of one prompt. Needs the package `lpips`, or its file `alex.pth`."""

    name, heading, unit = "lpips", "LPIPS", "LPIPS between pictures of one prompt"

    def prepare(self, instruments: Instruments) -> None:
        from flashdmd_cli.evaluation.scorers.lpips import LINEAR, linear_weights

        self.instruments = instruments
        linear = linear_weights(instruments.weights_dir)
        if linear is None:
            raise WeightsMissing(
                f"lpips: {LINEAR} (6 kB) of the package lpips is not on this machine",
                f"pip install 'flashdmd[lpips]', or --weights-dir DIR takes a local copy as DIR/lpips/{LINEAR}",
            )
        self.linear, self.trunk = linear, instruments.find(ALEXNET)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The group as four bytes, then the pictures at 512 x 512, (B, 4 + 3 * 512 * 512) uint8: LPIPS compares
        features of every place, of which there are more than pixels. That is 786 kB, so `condense` follows."""
        group = torch.tensor([row.group or 0 for row in rows], dtype=torch.int32).view(-1, 1).view(torch.uint8)
        small = each(pictures, lambda image: image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        return torch.cat([group, small.flatten(1)], dim=1)

    def condense(self, numbers: Tensor) -> Tensor:
        """Number of the group, and the mean LPIPS of its pairs (0 for a single picture), (N, 2) float64."""
        from flashdmd_cli.evaluation.scorers.lpips import load_lpips

        net = self.instruments.network(self.trunk, lambda: load_lpips(self.linear, self.trunk, self.instruments.device))
        group = numbers[:, :4].contiguous().view(torch.int32)[:, 0]
        found = torch.stack([group.double(), torch.zeros(len(group), dtype=torch.float64)], dim=1)
        for which in group.unique():
            own = group == which
            if own.sum() > 1:
                found[own, 1] = net.between(as_float(numbers[own, 4:].unflatten(1, (3, SIDE, SIDE))))
        return found

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: mean(torch.stack([rows[0] for rows in self.members(drawn[:, 1], drawn[:, 0])]))}

    def provenance(self) -> dict[str, Any]:
        return {
            "weights": described({"lpips": self.linear, "torchvision alexnet": self.trunk}),
            "preprocessing": "Lanczos to 512 x 512, each picture with each other of its prompt",
            "versions": versions("torchvision", "pillow"),
            **super().provenance(),
        }
