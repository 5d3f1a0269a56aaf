"""Picture statistics that change when a model collapses or exploits a reward: over-smoothing, over-saturation, grid
artefacts, blur.

Pictures are (N, 3, H, W) on [-1, 1]; every statistic gives one number for each, (N,) float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
CUTOFF = 0.25
"""Radial frequency in cycles per pixel above which detail counts as high frequency: half of the Nyquist frequency."""
LEVELS = 64
"""Luminance bins of `entropy`."""


def as_bytes(pictures: Tensor) -> Tensor:
    """Pictures on [-1, 1] as the 8 bits of a file, uint8; values outside are clamped."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def as_float(pictures: Tensor) -> Tensor:
    """Pictures of 8 bits as float32 on [-1, 1]."""
    return pictures.float() / 127.5 - 1


def luminance(pictures: Tensor) -> Tensor:
    """Rec. 601 luma (N, H, W), float64, of pictures with any value range."""
    return torch.einsum("nchw,c->nhw", pictures.double(), pictures.new_tensor(LUMINANCE, dtype=torch.float64))


def _unit(pictures: Tensor) -> Tensor:
    return (pictures.double().clamp(-1, 1) + 1) / 2


def brightness(pictures: Tensor) -> Tensor:
    """Mean luminance on [0, 1]."""
    return luminance(_unit(pictures)).mean(dim=(1, 2))


def contrast(pictures: Tensor) -> Tensor:
    """Standard deviation of luminance on [0, 1]."""
    return luminance(_unit(pictures)).flatten(1).std(dim=1)


def saturation(pictures: Tensor) -> Tensor:
    """Mean saturation of the HSV cone, (max - min) / max over the channels."""
    high, low = _unit(pictures).amax(1), _unit(pictures).amin(1)
    return ((high - low) / high.clamp(min=1e-6)).mean(dim=(1, 2))


def colourfulness(pictures: Tensor) -> Tensor:
    """Hasler and Suesstrunk (2003), values on [0, 1]: standard deviation of the opponent colours plus 0.3 times their
    mean."""
    red, green, blue = _unit(pictures).flatten(2).unbind(1)
    axes = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    return axes.std(dim=2).norm(dim=1) + 0.3 * axes.mean(dim=2).norm(dim=1)


def clipped(pictures: Tensor) -> Tensor:
    """Fraction of values that 8 bits store as 0 or 255."""
    values = (_unit(pictures) * 255).round()
    return ((values == 0) | (values == 255)).double().mean(dim=(1, 2, 3))


def laplacian(pictures: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian of luminance, a measure of sharpness."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64, device=pictures.device)
    return F.conv2d(luminance(_unit(pictures))[:, None], kernel[None, None]).flatten(1).var(dim=1)


def high_frequency_energy(pictures: Tensor) -> Tensor:
    """Mean power of the luminance spectrum above the cutoff."""
    luma = luminance(pictures)
    power = torch.fft.fft2(luma, norm="ortho").abs().square()
    height, width = luma.shape[-2:]
    vertical, horizontal = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    fine = torch.hypot(vertical[:, None], horizontal[None]) > CUTOFF
    return power[:, fine.to(power.device)].mean(dim=1)


def entropy(pictures: Tensor) -> Tensor:
    """Entropy in bits of the luminance histogram with 64 bins: low for flat, dark or overexposed pictures."""
    levels = (luminance(_unit(pictures)) * LEVELS).long().clamp(max=LEVELS - 1).flatten(1)
    counts = torch.zeros(len(levels), LEVELS, dtype=torch.float64, device=levels.device)
    shares = counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64)) / levels.shape[1]
    return -torch.special.xlogy(shares, shares).sum(dim=1) / torch.log(torch.tensor(2.0, dtype=torch.float64))


STATISTICS = {
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "colourfulness": colourfulness,
    "clipped": clipped,
    "laplacian": laplacian,
    "high_frequency": high_frequency_energy,
    "entropy": entropy,
}


def spread(groups: Tensor) -> Tensor:
    """Root mean square difference between the `K` pictures of each prompt: (P, K, 3, H, W) -> (P,) float64."""
    flat = groups.double().flatten(2)
    return flat.var(dim=1).mean(dim=1).mul(2).sqrt()


def relative_change(
    now: Tensor, before: Tensor, generator: torch.Generator, resamples: int = 400
) -> tuple[float, float, float]:
    """Relative change of the mean of paired values (P,), with the ends of its 95% bootstrap interval over P."""
    now, before = now.double().cpu(), before.double().cpu()
    rows = torch.randint(len(now), (resamples, len(now)), generator=generator)
    scale = before.mean().abs().clamp(min=1e-9)
    changes = (now - before)[rows].mean(dim=1) / scale
    low, high = changes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return ((now - before).mean() / scale).item(), low, high
