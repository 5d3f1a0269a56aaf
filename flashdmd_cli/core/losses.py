"""The losses of Flash-DMD and of the methods it is compared with: pure functions in float32.

Equation numbers are those of Flash-DMD (arXiv 2511.20549) unless another paper is named. Samples are (B, ...)
of any number of dimensions. Discriminator outputs are lists of logit maps (B, 1, h, w), one for each head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dm_gradient(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Direction of the distribution-matching loss (Eq. 4), of samples (B, ...).

    `((x - x0_real) - (x - x0_fake)) / mean|x - x0_real|`: the difference of the two scores in x0 space, scaled for each
    sample by how far the teacher would move it (DMD, Yin et al. 2024, Eq. 8). Not finite entries become zero.
    """
    x, x0_real, x0_fake = x.float(), x0_real.float(), x0_fake.float()
    scale = (x - x0_real).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True).clamp(min=1e-6)
    return torch.nan_to_num((x0_fake - x0_real) / scale, posinf=0.0, neginf=0.0)


def distribution_matching_loss(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Scalar whose gradient with respect to `x` is `dm_gradient / x.numel()` (Eq. 4)."""
    target = (x.float() - dm_gradient(x, x0_real, x0_fake)).detach()
    return 0.5 * F.mse_loss(x.float(), target)


def denoising_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the fake score's own prediction target, noise for SDXL (Eq. 6)."""
    return F.mse_loss(prediction.float(), target.float())


def _mean_over_maps(maps: Iterable[Tensor]) -> Tensor:
    """Mean over heads of the mean over each map's positions, for each sample: (B,)."""
    return torch.stack([m.float().flatten(1).mean(1) for m in maps]).mean(0)


def hinge_discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminator (Algorithm 1, line 25): `max(0, 1 - D(real)) + max(0, 1 + D(fake))`."""
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
    """Eq. 12, `-mean log sigmoid(beta H / d)`, of margins H (B,) in nats over d dimensions; ln 2 where H is zero.

    Deviates from the paper: Eq. 12 prints no `1 / d`. LPO and PSO take means over dimensions, and their beta belongs to
    that; here it is a divisor. The noise of a mean over d goes with one over the root of d, so small latents want a
    smaller beta (`align/shapes`: 100 where `align/sdxl` has 500).
    """
    return -F.logsigmoid(beta * margin.float() / num_dimensions).mean()


def pairwise_cross_entropy(score_0: Tensor, score_1: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Loss of a reward model on pairs of one prompt (LRM's criterion; Pick-a-Pic, Kirstain et al. 2023, Eq. 2).

    Scores (B,) of both pictures; `label` (B,) is 0 where picture 0 is better, 1 where picture 1 is, 0.5 for a tie.
    KL between the label as a distribution and `softmax([score_0, score_1])`, so a tie that is scored as one costs
    nothing. `weight` (B,) is normalised to a sum of one; without it all pairs count alike.
    """
    difference, label = score_1.float() - score_0.float(), label.float()
    cross_entropy = F.binary_cross_entropy_with_logits(difference, label, reduction="none")
    entropy = -torch.special.xlogy(label, label) - torch.special.xlogy(1 - label, 1 - label)
    losses = cross_entropy - entropy
    return losses.mean() if weight is None else (losses * weight / weight.sum()).sum()


@torch.no_grad()
def ema_update_(target: Iterable[Tensor], source: Iterable[Tensor], decay: float) -> None:
    """`target <- decay * target + (1 - decay) * source`, in place (Eq. 11: the fake score follows the student)."""
    torch._foreach_lerp_(list(target), list(source), 1.0 - decay)
