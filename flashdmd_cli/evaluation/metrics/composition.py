"""Composition accuracy: how often everything that the caption bound is right, as GenEval counts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, share
from flashdmd_cli.evaluation.metrics.metric import PictureShare, Row
from flashdmd_cli.evaluation.metrics.objects import third_object
from flashdmd_cli.shapes.captions import parse
from flashdmd_cli.shapes.world import ATTRIBUTES


class Composition(PictureShare):
    """Share of pictures in which all seven attributes are right; its parts are the shares of each attribute."""

    name, heading, direction, unit = "composition", "composition", "higher", "share of pictures"

    def prepare(self, instruments: Instruments) -> None:
        self.inspector = instruments.inspector

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Which attributes are right, (B, 7) bool; ValueError for a prompt that is no caption of the embedded world."""
        wanted = torch.tensor([parse(row.prompt) for row in rows])
        return self.inspector.read(pictures).attributes == wanted

    def scores(self, numbers: Tensor) -> Tensor:
        """1 where everything is right, else 0."""
        return numbers.all(dim=1).double()

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        single = {f"attributes.{name}": share(drawn[:, i], prompts) for i, name in enumerate(ATTRIBUTES)}
        return {**super().result(drawn, real, prompts), **single}


class Exact(PictureShare):
    """Share of pictures in which all seven attributes are right and there is no third object."""

    name, heading, direction, unit = "exact", "exact", "higher", "share of pictures"

    def prepare(self, instruments: Instruments) -> None:
        self.composition = Composition(instruments)

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Whether a picture is exactly what its caption says, (B,) bool."""
        return self.composition.measure(pictures, rows).all(dim=1) & ~third_object(pictures)
