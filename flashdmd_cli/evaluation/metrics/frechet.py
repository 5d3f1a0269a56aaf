"""Fréchet distance between two sets of features, each taken as a Gaussian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap
from flashdmd_cli.evaluation.metrics.metric import Metric, Row


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


def frechet(generated: Tensor, real: Tensor) -> Interval:
    """`frechet_features` with its interval."""
    return bootstrap(lambda g, r: frechet_features(generated[g], real[r]), len(generated), len(real))


class Frechet(Metric):
    """Squared Fréchet distance to real pictures on the inspector's features."""

    name, heading, direction, unit = "frechet", "Fréchet", "lower", "squared distance of inspector features"
    compares, digits = True, 1

    def prepare(self, instruments: Instruments) -> None:
        self.inspector = instruments.inspector

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The inspector's last hidden layer, (B, 128)."""
        return self.inspector.read(pictures).features

    def result(self, drawn: Tensor, real: Tensor) -> Mapping[str, Interval]:
        return {self.name: frechet(drawn, real)}
