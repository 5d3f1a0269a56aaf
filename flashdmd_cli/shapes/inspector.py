"""The inspector: a small CNN that predicts the seven bound attributes of a picture, its pattern and layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.core.weights import fit
from flashdmd_cli.shapes.world import ATTRIBUTES, PATTERNS

NUM_LAYOUT = 12
NUM_FEATURES = 128


@dataclass(frozen=True)
class Reading:
    """Predictions for `B` pictures."""

    attributes: Tensor  # (B, 7) long
    pattern: Tensor  # (B,) long
    layout: Tensor  # (B, 12) on [0, 1], order as in `building.pool.Pool`
    features: Tensor  # (B, 128) last hidden layer, used for the Fréchet distance


class Inspector(nn.Module):
    """Four convolutional stages and linear heads. Input (B, 3, 64, 64) on [-1, 1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        w = width
        self.body = nn.Sequential(
            *conv(3, w, 2), *conv(w, w), *conv(w, 2 * w, 2), *conv(2 * w, 2 * w),
            *conv(2 * w, 4 * w, 2), *conv(4 * w, 4 * w), *conv(4 * w, 4 * w),
        )  # fmt: skip
        self.neck = nn.Sequential(
            *conv(4 * w, w), nn.Flatten(), nn.Linear(64 * w, NUM_FEATURES), nn.BatchNorm1d(NUM_FEATURES), nn.ReLU()
        )
        self.attribute_heads = nn.ModuleList(nn.Linear(NUM_FEATURES, len(v)) for v in ATTRIBUTES.values())
        self.pattern_head = nn.Linear(NUM_FEATURES, len(PATTERNS))
        self.layout_head = nn.Linear(NUM_FEATURES, NUM_LAYOUT)

    def forward(self, pictures: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Logits of each attribute, logits of the pattern, layout (B, 12), features (B, 128)."""
        features = self.neck(self.body(pictures))
        heads = [head(features) for head in self.attribute_heads]
        return heads, self.pattern_head(features), self.layout_head(features), features

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: int = 256) -> Reading:
        """Predictions for pictures (B, 3, 64, 64) on [-1, 1], computed in parts of `batch`."""
        rows = []
        for part in pictures.split(batch):
            heads, pattern, layout, features = self(part)
            attributes = torch.stack([logits.argmax(1) for logits in heads], dim=1)
            rows.append((attributes, pattern.argmax(1), layout, features))
        return Reading(*(torch.cat(column) for column in zip(*rows, strict=True)))


def load_inspector(folder: Path) -> Inspector:
    """Load the shipped inspector from its folder, frozen, in eval mode; Unfit for other weights."""
    path = folder / "inspector.safetensors"
    try:
        return fit(Inspector(), load_file(path)).eval().requires_grad_(False)
    except Unfit as error:
        raise Unfit(f"{path}: {error}", "install flashdmd again") from None
