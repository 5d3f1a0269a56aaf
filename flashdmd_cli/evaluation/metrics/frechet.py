"""Fréchet distance between two sets of features, each taken as a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import BOOTSTRAP_SEED, Z95, Interval, by_prompt, resample
from flashdmd_cli.evaluation.metrics.metric import Metric, Row

NUM_RESAMPLES = 8
UNBIASED = "unbiased"
"""Group of the distances without the bias of finite samples, which is taken off to first order only: they are in
`results.json`, and in no table."""


def frechet_gaussians(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, means (D,), covariances (D, D), in float64.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), Dowson & Landau 1982; the matrix under the outer root is
    symmetric, so eigenvalues of symmetric matrices are all it takes.
    """
    mean_1, cov_1, mean_2, cov_2 = (tensor.double() for tensor in (mean_1, cov_1, mean_2, cov_2))
    values, vectors = torch.linalg.eigh(cov_1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    middle = root @ cov_2 @ root
    cross = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross
    return max(0.0, float(distance))


def frechet_features(generated: Tensor, real: Tensor) -> float:
    """Fréchet distance of features (N, D) and (M, D). With few pictures it is biased upwards: compare equal N and M."""
    if min(len(generated), len(real)) < 2:
        raise ValueError("a covariance needs at least two pictures")
    generated, real = generated.double(), real.double()
    return frechet_gaussians(generated.mean(0), generated.T.cov(), real.mean(0), real.T.cov())


@dataclass(frozen=True)
class Expansion:
    """The distance of two sets, and how much each picture moves it: its first derivative in the picture's weight."""

    value: float
    moves: Tensor
    """Of the generated pictures, (N,), with mean zero."""
    moves_real: Tensor
    """Of the real ones, (M,), with mean zero."""

    def variance(self, prompts: Sequence[str] = ()) -> float:
        """Of the distance between random sets of as many pictures, to first order; `prompts` are the ids of the
        generated ones."""
        moves = by_prompt(self.moves, prompts)
        return float(moves.var() / len(moves) + self.moves_real.var() / len(self.moves_real))


def expand(generated: Tensor, real: Tensor) -> Expansion:
    """`Expansion` of features (N, D) and (M, D).

    With the optimal transport map T between the Gaussians, S1 -> S2, the derivative in S1 is I - T, in S2 I - T^-1, and
    in the means twice their difference; on the span of the pictures where there are fewer than dimensions.
    """
    generated, real = generated.double(), real.double()
    shift = generated.mean(0) - real.mean(0)
    cov, cov_real = generated.T.cov(), real.T.cov()
    root, inverse_root, _ = _powers(cov)
    middle = root @ cov_real @ root
    middle_root, inverse_middle_root, trace = _powers((middle + middle.T) / 2)
    there, back = inverse_root @ middle_root @ inverse_root, root @ inverse_middle_root @ root

    def of(features: Tensor, transport: Tensor, towards: Tensor) -> Tensor:
        centred = features - features.mean(0)
        parts = 2 * centred @ towards + centred.square().sum(dim=1) - ((centred @ transport) * centred).sum(dim=1)
        return parts - parts.mean()

    value = float(shift.square().sum() + cov.trace() + cov_real.trace()) - 2 * trace
    return Expansion(value, of(generated, there, shift), of(real, back, -shift))


def _powers(matrix: Tensor) -> tuple[Tensor, Tensor, float]:
    """Root, inverse root and trace of the root of a symmetric matrix; directions without variance stay without."""
    values, vectors = torch.linalg.eigh(matrix)
    some = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    root = torch.where(some, values, 0).sqrt()
    inverse = torch.where(some, values, 1).rsqrt() * some
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T, float(root.sum())


def frechet(
    generated: Tensor, real: Tensor, num_resamples: int = NUM_RESAMPLES, prompts: Sequence[str] = ()
) -> tuple[Interval, Interval]:
    """`frechet_features`, and the distance of the distributions themselves, each with its interval.

    The first is biased upwards, as every published value is; its interval is that of its expectation: where other seeds
    with as many pictures would end. Of the second the bias is taken off.

    The standard error is that of the delta method: the moves of single pictures add up. (Bootstrap intervals are too
    wide in many dimensions, for a resample repeats pictures.) The bias is how much further apart resamples lie than
    what they were drawn from; of each the sum of its pictures' moves, whose mean is zero, is taken off first, so that
    few resamples are enough. It is exact to first order in D / N: where the bias is most of the value some 10% of it
    stays. So the second has an interval only if the correction is at most half the width of it, else an unbounded one.

    Of repeated `prompts` (the ids of the generated pictures) each is one observation, for the error and in resamples.
    """
    generated, real = generated.double(), real.double()
    if len(generated) + len(real) < generated.shape[1]:  # in fewer dimensions, with the same distances
        span = torch.linalg.qr(torch.cat([generated, real]).T).Q
        generated, real = generated @ span, real @ span
    plain, generator = expand(generated, real), torch.Generator().manual_seed(BOOTSTRAP_SEED)
    biases = []
    for _ in range(num_resamples):
        drawn, other = resample(len(generated), generator, prompts), resample(len(real), generator)
        moved = float(plain.moves[drawn].mean() + plain.moves_real[other].mean())
        biases.append(frechet_features(generated[drawn], real[other]) - plain.value - moved)
    half, value, bias = Z95 * math.sqrt(plain.variance(prompts)), frechet_features(generated, real), fmean(biases)
    return _around(value, half), _around(value - bias, half if abs(bias) <= half else math.inf)


def _around(value: float, half: float) -> Interval:
    return Interval(max(0.0, value), max(0.0, value - half) if half < math.inf else -half, max(0.0, value + half))


class FeatureDistance(Metric):
    """Fréchet distance to real pictures of some features; a subclass defines `measure`, the features (B, D)."""

    direction, compares, digits, least = "lower", True, 2, 2

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        """The distance; below `unbiased.` the same without the bias of finite samples, to first order,
        with an interval where that correction is small."""
        plain, without_bias = frechet(drawn, real, prompts=prompts)
        return {self.name: plain, f"{UNBIASED}.{self.name}": without_bias}


class Frechet(Metric):
    """Squared Fréchet distance to real pictures on the inspector's features."""

    name, heading, direction, unit = "frechet", "Fréchet", "lower", "squared distance of inspector features"
    compares, digits, least = True, 1, 2

    def prepare(self, instruments: Instruments) -> None:
        self.inspector = instruments.inspector

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The inspector's last hidden layer, (B, 128)."""
        return self.inspector.read(pictures).features

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: frechet(drawn, real, num_resamples=1, prompts=prompts)[0]}
