"""Suites of the embedded world, whose real pictures are rendered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flashdmd_cli.core.pictures import as_bytes
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.evaluation.suites.suite import Batch
from flashdmd_cli.shapes.captions import parse
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import sample_scenes

CEILING_SEED = 20_251_122
"""Draws a second set of real pictures: what the metrics say of it is the best a model can do, chance included."""
CHUNK = 250
"""Pictures rendered at once. Part of what a seed means: another number renders other pictures."""


@dataclass(frozen=True)
class ShapesSuite:
    """Captions of the embedded world; real pictures show what they say, and the rest as it comes."""

    name: str
    version: int
    rows: Sequence[Row]
    metrics: Sequence[Metric]
    reference_seed: int
    sha256: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    world: str | None = "shapes"
    reference_folder: Path | None = None
    reference_names: Sequence[str] | None = None
    published: bool = False

    def references(self, seed: int | None = None) -> Iterator[Batch]:
        """Rendered pictures of all captions, 250 at a time (the last ones fewer); `seed` draws another set."""
        generator = torch.Generator().manual_seed(self.reference_seed if seed is None else seed)
        for start in range(0, len(self.rows), CHUNK):
            rows = self.rows[start : start + CHUNK]
            attributes = torch.tensor([parse(row.prompt) for row in rows])
            yield as_bytes(render(sample_scenes(len(rows), generator, attributes=attributes), generator)), rows
