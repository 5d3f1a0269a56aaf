"""Losses of Flash-DMD and of its baselines: pure functions in float32.

Equation numbers refer to Flash-DMD (arXiv 2511.20549) unless another paper is named. Samples are (B, ...) with any
number of dimensions. Discriminator outputs are lists of logit maps (B, 1, h, w), one per head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdmd_cli.core.shards import local


def dm_gradient(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Distribution-matching gradient (Eq. 4) of samples `x` (B, ...), same shape.

    `((x - x0_real) - (x - x0_fake)) / mean|x - x0_real|`: the difference of both scores in x0 space, divided per sample
    by the mean distance to the teacher's prediction (DMD, Yin et al. 2024, Eq. 8). Non-finite entries become zero.
    """
    x, x0_real, x0_fake = x.float(), x0_real.float(), x0_fake.float()
    scale = (x - x0_real).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True).clamp(min=1e-6)
    return torch.nan_to_num((x0_fake - x0_real) / scale, posinf=0.0, neginf=0.0)


def distribution_matching_loss(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Scalar whose gradient with respect to `x` is `dm_gradient / x.numel()` (Eq. 4)."""
    target = (x.float() - dm_gradient(x, x0_real, x0_fake)).detach()
    return 0.5 * F.mse_loss(x.float(), target)


def denoising_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error between the fake score's output and its target, the noise for SDXL (Eq. 6)."""
    return F.mse_loss(prediction.float(), target.float())


def _mean_over_maps(maps: Iterable[Tensor]) -> Tensor:
    """Mean over the positions of each map, then over heads: (B,)."""
    return torch.stack([m.float().flatten(1).mean(1) for m in maps]).mean(0)


def hinge_discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminator (Algorithm 1, line 25): `max(0, 1 - D(real)) + max(0, 1 + D(fake))`; scalar."""
    return (
        _mean_over_maps(F.relu(1 - m.float()) for m in real).mean()
        + _mean_over_maps(F.relu(1 + m.float()) for m in fake).mean()
    )


def hinge_generator_loss(fake: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
    """Adversarial loss of the student, `-mean D(fake)` (Eq. 9 in hinge form); `weight` (B,) scales each sample."""
    score = -_mean_over_maps(fake)
    return (score if weight is None else score * weight).mean()


def softplus_discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Non-saturating loss of the discriminator (Eq. 10 with `D = sigmoid(logit)`; DMD2, Eq. 4)."""
    return (
        _mean_over_maps(F.softplus(-m.float()) for m in real).mean()
        + _mean_over_maps(F.softplus(m.float()) for m in fake).mean()
    )


def softplus_generator_loss(fake: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
    """Non-saturating adversarial loss of the student, `-log sigmoid(logit)` (Eq. 5)."""
    score = _mean_over_maps(F.softplus(-m.float()) for m in fake)
    return (score if weight is None else score * weight).mean()


def preference_loss(margin: Tensor, beta: float, num_dimensions: int) -> Tensor:
    """Preference loss `-mean log sigmoid(beta H / d)` (Eq. 12) of margins H (B,) in nats; ln 2 where all H are zero.

    `d` is `num_dimensions`, the number of latent values per sample. Eq. 12 has no `1 / d`; LPO and PSO average over
    dimensions and choose beta for the average, which dividing by d reproduces. The standard deviation of such an
    average falls as `1 / sqrt(d)`, so small latents need a smaller beta (`align/shapes`: 100, `align/sdxl`: 500).
    """
    return -F.logsigmoid(beta * margin.float() / num_dimensions).mean()


def pairwise_cross_entropy(score_0: Tensor, score_1: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Loss of a reward model on picture pairs with the same prompt (LRM; Pick-a-Pic, Kirstain et al. 2023, Eq. 2).

    Scores are (B,); `label` (B,) is 0 where picture 0 is better, 1 where picture 1 is better, 0.5 for a tie. The loss
    is the KL divergence from `softmax([score_0, score_1])` to the label distribution, so equal scores for a tie cost
    nothing. `weight` (B,) is normalised to sum to one; without it, all pairs have equal weight.
    """
    difference, label = score_1.float() - score_0.float(), label.float()
    cross_entropy = F.binary_cross_entropy_with_logits(difference, label, reduction="none")
    entropy = -torch.special.xlogy(label, label) - torch.special.xlogy(1 - label, 1 - label)
    losses = cross_entropy - entropy
    return losses.mean() if weight is None else (losses * weight / weight.sum()).sum()


@torch.no_grad()
def ema_update_(target: Iterable[Tensor], source: Iterable[Tensor], decay: float) -> None:
    """In-place moving average `target <- decay * target + (1 - decay) * source` (Eq. 11: fake score and student).

    Sharded tensors have to be sharded alike; each process averages its own rows.
    """
    torch._foreach_lerp_([local(t) for t in target], [local(s) for s in source], 1.0 - decay)
