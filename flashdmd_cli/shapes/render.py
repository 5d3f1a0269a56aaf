"""Rendering of scenes with signed distance functions: whole batches, anti-aliased, in a few tensor operations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdmd_cli.shapes.world import IMAGE_SIZE, Scenes

RIM_WIDTH = 1.6
"""Width of an object's dark rim, in pixels."""


def render(scenes: Scenes, generator: torch.Generator) -> Tensor:
    """Render `B` scenes on their device: (B, 3, 64, 64) float32 on [-1, 1].

    `generator`, of the same device, is used for the grain only.
    """
    grid = _pixel_grid().to(scenes.center.device)
    picture = _background(scenes, grid)
    for which in range(scenes.shape.shape[1]):
        distance = _signed_distance(scenes, which, grid)
        fill = _surface(scenes, which, grid)
        rim = torch.sigmoid(4.0 * (distance + RIM_WIDTH))[:, None]
        fill = fill * (1 - rim) + 0.06 * rim
        cover = torch.sigmoid(4.0 * -distance)[:, None]
        picture = picture * (1 - cover) + fill * cover
    grain = torch.randn(picture.shape, generator=generator, device=generator.device) * scenes.grain[:, None, None, None]
    return (picture + grain).clamp(0, 1) * 2 - 1


def masks(scenes: Scenes) -> Tensor:
    """Masks of both objects, (B, 2, 64, 64) bool."""
    grid = _pixel_grid().to(scenes.center.device)
    return torch.stack([_signed_distance(scenes, which, grid) < 0 for which in (0, 1)], dim=1)


def _pixel_grid() -> Tensor:
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y])  # (2, H, W)


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _signed_distance(scenes: Scenes, which: int, grid: Tensor) -> Tensor:
    """Distance to the outline in pixels, negative inside, (B, H, W)."""
    center, radius = scenes.center[:, which], scenes.radius[:, which, None, None]
    x, y = grid[0] - center[:, 0, None, None], grid[1] - center[:, 1, None, None]
    u, v = _rotate(x, y, scenes.tilt[:, which])
    length = torch.hypot(x, y)
    circle = length - radius
    # The square's corners are at 1.2 radii, so that square and circle appear equally large.
    square = torch.maximum(u.abs(), v.abs()) - 0.85 * radius
    side = math.sqrt(3) / 2
    triangle = torch.maximum(torch.maximum(side * u - 0.5 * v, -side * u - 0.5 * v), v) - 0.55 * radius
    ring = (length - 0.65 * radius).abs() - 0.35 * radius
    every = torch.stack([circle, square, triangle, ring], dim=1)
    return every.gather(1, scenes.shape[:, which, None, None, None].expand(-1, 1, *every.shape[2:]))[:, 0]


def _stripes(x: Tensor, y: Tensor, params: Tensor, sharpness: float) -> Tensor:
    u, _ = _rotate(x, y, params[:, 0])
    phase = u / params[:, 1, None, None] + params[:, 2, None, None]
    return torch.sigmoid(sharpness * torch.cos(2 * math.pi * phase))


def _surface(scenes: Scenes, which: int, grid: Tensor) -> Tensor:
    """Colour of an object with its surface, (B, 3, H, W) on [0, 1]."""
    x, y = grid[0].expand(len(scenes), -1, -1), grid[1].expand(len(scenes), -1, -1)
    params = scenes.texture[:, which]
    striped = _stripes(x, y, params, 4.0)
    u, v = _rotate(x, y, params[:, 0])
    period = params[:, 1, None, None]
    cell_u = (u / period + params[:, 2, None, None]) % 1 - 0.5
    cell_v = (v / period + params[:, 3, None, None]) % 1 - 0.5
    dotted = torch.sigmoid(3.0 * (0.30 * period - torch.hypot(cell_u, cell_v) * period))
    shade = torch.stack([torch.zeros_like(striped), striped, dotted], dim=1)
    shade = shade.gather(1, scenes.surface[:, which, None, None, None].expand(-1, 1, *shade.shape[2:]))
    return scenes.rgb[:, which, :, None, None] * (1 - 0.68 * shade)


def _background(scenes: Scenes, grid: Tensor) -> Tensor:
    """Two colours blended by a gradient and a pattern, (B, 3, H, W) on [0, 1]."""
    num = len(scenes)
    x, y = (grid[0] / IMAGE_SIZE - 0.5).expand(num, -1, -1), (grid[1] / IMAGE_SIZE - 0.5).expand(num, -1, -1)
    slope, _ = _rotate(x, y, scenes.gradient)
    ramp = (slope + 0.5).clamp(0, 1)
    px, py = grid[0].expand(num, -1, -1), grid[1].expand(num, -1, -1)
    stripes = _stripes(px, py, scenes.motif, 5.0)
    u, v = _rotate(px, py, scenes.motif[:, 0])
    period = scenes.motif[:, 1, None, None]
    waves = torch.cos(2 * math.pi * (u / period + scenes.motif[:, 2, None, None])) * torch.cos(
        2 * math.pi * (v / period + scenes.motif[:, 3, None, None])
    )
    checks = torch.sigmoid(14.0 * waves)
    field = F.interpolate(scenes.field[:, None], size=IMAGE_SIZE, mode="bicubic", align_corners=False)[:, 0]
    blobs = torch.sigmoid(7.0 * field)
    motif = torch.stack([torch.full_like(stripes, 0.5), stripes, checks, blobs], dim=1)
    motif = motif.gather(1, scenes.pattern[:, None, None, None].expand(-1, 1, IMAGE_SIZE, IMAGE_SIZE))[:, 0]
    # The gradient mixes both colours; the pattern changes brightness, so it is visible even if they are similar.
    low, high = scenes.ground[:, 0, :, None, None], scenes.ground[:, 1, :, None, None]
    return (low + (high - low) * ramp[:, None] + 0.30 * (motif[:, None] - 0.5)).clamp(0, 1)
