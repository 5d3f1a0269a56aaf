"""A fixed pool of rendered training pictures, rendered once per build folder and shared by all builders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import IMAGE_SIZE, sample_scenes

POOL_SIZE = 40_000
POOL_SEED = 2024


@dataclass(frozen=True)
class Pool:
    """`N` rendered scenes with their labels."""

    pixels: Tensor  # (N, 3, 64, 64) uint8
    attributes: Tensor  # (N, 7) long
    pattern: Tensor  # (N,) long
    layout: Tensor  # (N, 12) x, y, radius of both objects and both ground colours, each on [0, 1]

    def __len__(self) -> int:
        return len(self.pixels)

    def pictures(self, index: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) float32 on [-1, 1], the input of networks."""
        return self.pixels[index].float() / 127.5 - 1


def draw_pool(num: int, seed: int, held_out: bool = False) -> Pool:
    """Render a pool of `num` scenes; reproducible by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, num, 500):
        scenes = sample_scenes(min(500, num - start), generator, held_out)
        pixels = ((render(scenes, generator) + 1) * 127.5).round().to(torch.uint8)
        layout = torch.cat(
            [scenes.center.flatten(1) / IMAGE_SIZE, scenes.radius / 16.0, scenes.ground.flatten(1)], dim=1
        )
        parts.append((pixels, scenes.attributes, scenes.pattern, layout))
    return Pool(*(torch.cat(column) for column in zip(*parts, strict=True)))


def load_pool(folder: Path) -> Pool:
    """The training pool, rendered if it is not in `folder` yet."""
    path = folder / "pool.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pool = draw_pool(POOL_SIZE, POOL_SEED)
        temporary = path.with_suffix(".tmp")
        save_file(vars(pool) | {}, temporary)
        temporary.rename(path)
    return Pool(**load_file(path))
