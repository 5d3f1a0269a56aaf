"""Pictures of the embedded world as samples for `data.shards.write_shards`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flashdmd_cli.shapes.captions import captions
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import ATTRIBUTES, IMAGE_SIZE, PATTERNS, Scenes, sample_scenes

CHUNK = 500
"""Scenes generated at a time. Whole chunks are always generated, so that a shorter set is the start of a longer one."""


def layout_of(scenes: Scenes) -> Tensor:
    """Attributes that are not in the caption, (B, 12) on [0, 1]: x, y of both objects, radii, background colours."""
    return torch.cat([scenes.center.flatten(1) / IMAGE_SIZE, scenes.radius / 16.0, scenes.ground.flatten(1)], dim=1)


def shapes_samples(num: int, seed: int, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """`num` captioned pictures; `held_out` selects the attribute combinations that are not in training data.

    Each is `__key__`, `png` (bytes), `txt` (caption), `json` (`attributes`, their `names`, `pattern`, `layout`).
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, num, CHUNK):
        scenes = sample_scenes(CHUNK, generator, held_out)
        pictures = ((render(scenes, generator) + 1) * 127.5).round().to(torch.uint8)
        texts = captions(scenes.attributes, generator)
        layout = layout_of(scenes)
        for i in range(min(CHUNK, num - start)):
            attributes = scenes.attributes[i].tolist()
            names = {name: ATTRIBUTES[name][value] for name, value in zip(ATTRIBUTES, attributes, strict=True)}
            yield {
                "__key__": f"{start + i:08d}",
                "png": _png(pictures[i]),
                "txt": texts[i],
                "json": {
                    "attributes": attributes,
                    "names": names,
                    "pattern": PATTERNS[int(scenes.pattern[i])],
                    "layout": [round(value, 5) for value in layout[i].tolist()],
                },
            }


def _png(picture: Tensor) -> bytes:
    """A picture (3, H, W) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
