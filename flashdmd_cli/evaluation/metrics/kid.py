"""KID (Binkowski et al., 2018): an unbiased distance of Inception features, so also for few pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.fid import OnInception
from flashdmd_cli.evaluation.metrics.intervals import Z95, Interval, by_prompt

ROWS = 1024
"""Rows of the kernel matrix that are computed at once."""


def kernel_distance(generated: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Interval:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3 of features (N, D) and (M, D), over all pairs.

    Unbiased, so it may be negative. The interval is that of a U-statistic: to first order, means over pictures. Of
    repeated `prompts` (the ids of the generated pictures) each is one observation; pairs of one prompt stay in.
    """
    if min(len(generated), len(real)) < 2:
        raise ValueError("a kernel distance needs at least two pictures")
    generated, real = generated.double(), real.double()
    own, cross = _row_means(generated, generated, True), _row_means(generated, real, False)
    own_real, cross_real = _row_means(real, real, True), _row_means(real, generated, False)
    value = float(own.mean() + own_real.mean() - 2 * cross.mean())
    parts = by_prompt(own - cross, prompts)
    variance = 4 * (parts.var() / len(parts) + (own_real - cross_real).var() / len(own_real))
    half = Z95 * math.sqrt(float(variance))
    return Interval(value, value - half, value + half)


def _row_means(first: Tensor, second: Tensor, same: bool) -> Tensor:
    """Mean of the kernel of each row of `first` (N, D) with all of `second` (M, D), itself left out if `same`: (N,)."""
    means = []
    for start in range(0, len(first), ROWS):
        rows = first[start : start + ROWS]
        kernel = (rows @ second.T / rows.shape[1] + 1) ** 3
        total = kernel.sum(dim=1)
        if same:
            total -= (rows.square().sum(dim=1) / rows.shape[1] + 1) ** 3
        means.append(total / (len(second) - same))
    return torch.cat(means)


class Kid(OnInception):
    """Kernel Inception distance to the suite's real pictures, on the preparation of `fid`."""

    name, heading, direction, unit = "kid", "KID", "lower", "squared kernel distance of Inception features"
    min_pictures = 100
    least = 2
    digits = 5

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: kernel_distance(drawn, real, prompts)}
