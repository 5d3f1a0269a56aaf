"""Discriminators: heads on a frozen SAM image encoder (pixels), or on inner features of the fake score (latents).

Both return a list of logit maps (B, 1, h, w), which `core.losses` turns into losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from flashdmd_cli.networks.sam import SamTrunk


class DiscriminatorHead(nn.Module):
    """1x1 -> GroupNorm -> LeakyReLU -> residual 3x3 -> stride-2 3x3 -> 1x1: one logit per patch of the picture.

    Spectral norm on every convolution; no batch norm, so that the batch size may be one. The paper does not specify its
    heads on SAM; these layers are this project's choice.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        groups = math.gcd(32, channels)
        self.enter = spectral_norm(nn.Conv2d(inputs, channels, 1))
        self.norm = nn.GroupNorm(groups, channels)
        self.residual = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.residual_norm = nn.GroupNorm(groups, channels)
        self.down = spectral_norm(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        self.leave = spectral_norm(nn.Conv2d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, 1, ceil(h / 2), ceil(w / 2)) for features (B, C, h, w)."""
        x = F.leaky_relu(self.norm(self.enter(features)), 0.2)
        x = x + F.leaky_relu(self.residual_norm(self.residual(x)), 0.2)
        return self.leave(F.leaky_relu(self.down(x), 0.2))


class PixelDiscriminator(nn.Module):
    """Trainable heads on the global-attention blocks of a frozen SAM; checkpoints need only `heads.state_dict()`."""

    def __init__(self, sam_encoder: ImageEncoderViT, channels: int | None = None, precision: str = "fp32") -> None:
        """`channels` is the width of the heads; default: the encoder's width, at most 256.

        `precision="bf16"` runs the encoder under autocast; the heads stay in float32.
        """
        super().__init__()
        self.trunk = SamTrunk(sam_encoder)
        self.precision = precision
        width = channels or min(256, self.trunk.width)
        # In evaluation mode, a forward pass leaves the estimates of the spectral norms as they are.
        self.heads = nn.ModuleList(DiscriminatorHead(self.trunk.width, width) for _ in self.trunk.hooks).eval()

    def extract_features(self, pixels: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) of each global-attention block for pixels (B, 3, H, W) on [-1, 1]."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.trunk(pixels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One logit map (B, 1, h', w') for each feature map of `extract_features`."""
        return [head(feature.float()) for head, feature in zip(self.heads, features, strict=True)]


@torch.no_grad()
def estimate_spectral_norms_(net: nn.Module) -> None:
    """One power iteration for each layer with spectral norm.

    Called once per iteration. If each forward pass did this, as torch does in training mode, results would depend on
    the number of micro-batches, and so on the number of processes.
    """
    for module in net.modules():
        if is_parametrized(module, "weight"):
            module.train()
            _ = module.weight  # computing it runs the power iteration
            module.eval()


class LatentDiscriminator(nn.Module):
    """A small head on each intermediate feature map of the fake score, as in DMD2, which classifies noisy latents."""

    def __init__(self, widths: Sequence[int], channels: int | None = None) -> None:
        """`widths` are the channels of the feature maps (`Family.tap_widths`), `channels` those of the heads
        (default: the same, at most 512)."""
        super().__init__()
        self.heads = nn.ModuleList(_latent_head(width, channels or min(512, width)) for width in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One logit map (B, 1, ceil(h / 2), ceil(w / 2)) for each feature map (B, C, h, w)."""
        return [head(feature.float()) for head, feature in zip(self.heads, features, strict=True)]


def _latent_head(inputs: int, width: int) -> nn.Sequential:
    groups = math.gcd(32, width)
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(groups, width), nn.SiLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(groups, width), nn.SiLU(),
        nn.Conv2d(width, 1, 1),
    )  # fmt: skip
