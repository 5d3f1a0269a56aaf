"""Energy of fine texture, generated against real: below 1 is smoother than real pictures, above 1 is rougher."""

from __future__ import annotations

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap

CUTOFF = 0.25
"""Radial frequency in cycles per pixel above which detail counts as fine: half of the Nyquist frequency."""


def high_frequency_energy(pictures: Tensor) -> Tensor:
    """Mean power of the luminance spectrum above the cutoff, pictures (N, 3, H, W) on [-1, 1], gives (N,) float64."""
    weights = pictures.new_tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    luminance = torch.einsum("nchw,c->nhw", pictures.double(), weights)
    power = torch.fft.fft2(luminance, norm="ortho").abs().square()
    height, width = luminance.shape[-2:]
    vertical, horizontal = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    fine = torch.hypot(vertical[:, None], horizontal[None]) > CUTOFF
    return power[:, fine.to(power.device)].mean(dim=1)


def high_frequency(generated: Tensor, real: Tensor) -> Interval:
    """Mean energy of generated pictures over that of real ones, both (N, 3, H, W) on [-1, 1] and of one size."""
    above, below = high_frequency_energy(generated), high_frequency_energy(real)
    return bootstrap(lambda g, r: float(above[g].mean() / below[r].mean()), len(above), len(below))
