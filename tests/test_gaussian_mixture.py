"""Distribution matching on a problem with a known answer: a two-mode Gaussian mixture in the plane, exact scores."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from flashdmd_cli.core.losses import denoising_loss, distribution_matching_loss
from flashdmd_cli.core.schedules import VPSchedule, add_noise, per_sample, x0_from_eps

SCHEDULE = VPSchedule(DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod)
MEANS = torch.tensor([[-1.2, 0.4], [0.8, -0.6]])
WEIGHTS = torch.tensor([0.4, 0.6])
COVARIANCE = torch.tensor([[0.10, 0.04], [0.04, 0.06]])  # of each mode
BATCH = 256


def plane(points: Tensor) -> Tensor:
    return points.reshape(len(points), 2, 1, 1)


def teacher_x0(x_t: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] under the mixture, in closed form."""
    alpha, sigma = SCHEDULE.alpha(t).reshape(-1, 1), SCHEDULE.sigma(t).reshape(-1, 1)
    x = x_t.flatten(1)[:, None]  # (B, 1, 2)
    noisy = alpha[..., None, None] ** 2 * COVARIANCE + sigma[..., None, None] ** 2 * torch.eye(2)  # (B, 1, 2, 2)
    residual = x - alpha[..., None] * MEANS  # (B, 2, 2)
    whitened = (noisy.inverse() @ residual[..., None])[..., 0]
    responsibility = (WEIGHTS.log() - 0.5 * (residual * whitened).sum(-1)).softmax(1)  # the determinants are equal
    posterior = MEANS + alpha[..., None] * whitened @ COVARIANCE
    return plane((responsibility[..., None] * posterior).sum(1))


class FakeScore(nn.Module):
    """A small network that predicts noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t).reshape(-1, 1), SCHEDULE.sigma(t).reshape(-1, 1)
        x = x_t.flatten(1)
        u = t[:, None] / 500 - 1
        return plane(self.net(torch.cat([x, alpha, sigma, u, u**2, x * alpha], 1)) + x * sigma)


def mixture(num: int, generator: torch.Generator) -> Tensor:
    mode = torch.multinomial(WEIGHTS, num, replacement=True, generator=generator)
    return MEANS[mode] + torch.randn(num, 2, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T


def train(iterations: int, ttur: int = 2, with_fake: bool = True, seed: int = 0) -> Tensor:
    """4,000 points of a generator trained by nothing but the two losses of the method."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    student = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    fake = FakeScore()
    learn_student = torch.optim.Adam(student.parameters(), lr=2e-3, betas=(0.5, 0.99))
    learn_fake = torch.optim.Adam(fake.parameters(), lr=4e-3, betas=(0.5, 0.99))

    def noise() -> Tensor:
        return plane(torch.randn(BATCH, 2, generator=generator))

    def times(low: int, high: int) -> Tensor:
        """More of the low noise, where the width of a mode shows."""
        return (low + (high - low) * torch.rand(BATCH, generator=generator) ** 2).long()

    def generate() -> Tensor:
        return plane(student(noise().flatten(1)))

    for iteration in range(iterations):
        for optimizer, lr in ((learn_student, 2e-3), (learn_fake, 4e-3)):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - iteration / iterations))
        if iteration % ttur == 0:
            x, t = generate(), times(20, 981)
            with torch.no_grad():
                x_t = add_noise(SCHEDULE, x, noise(), t)
                x0_fake = x0_from_eps(SCHEDULE, fake(x_t, t), x_t, t) if with_fake else x
                x0_real = teacher_x0(x_t, t)
            learn_student.zero_grad()
            distribution_matching_loss(x, x0_real, x0_fake).backward()
            learn_student.step()
        if with_fake:
            with torch.no_grad():
                x = generate()
            t, eps = times(0, 1000), noise()
            learn_fake.zero_grad()
            denoising_loss(fake(add_noise(SCHEDULE, x, eps, t), t), eps).backward()
            learn_fake.step()
    with torch.no_grad():
        return student(torch.randn(4000, 2, generator=generator))


def test_teacher_is_exact() -> None:
    """Its posterior mean is Tweedie's: x_t + sigma^2 d log p(x_t), with the density written out."""
    t = torch.tensor([20, 250, 500, 750, 980]).repeat_interleave(20)
    generator = torch.Generator().manual_seed(0)
    x_t = add_noise(SCHEDULE, plane(mixture(100, generator)), plane(torch.randn(100, 2, generator=generator)), t)
    x_t.requires_grad_(True)
    log_density = []
    for x, step in zip(x_t.flatten(1), t, strict=True):
        alpha, variance = SCHEDULE.alpha(step[None]).item(), SCHEDULE.sigma(step[None]).item() ** 2
        modes = [
            torch.distributions.MultivariateNormal(alpha * mean, alpha**2 * COVARIANCE + variance * torch.eye(2))
            for mean in MEANS
        ]
        log_density.append(torch.logsumexp(torch.stack([m.log_prob(x) for m in modes]) + WEIGHTS.log(), 0))
    (score,) = torch.autograd.grad(torch.stack(log_density).sum(), x_t)
    alpha, sigma = (per_sample(values, x_t) for values in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    expected = (x_t + sigma**2 * score) / alpha
    torch.testing.assert_close(teacher_x0(x_t.detach(), t), expected.detach(), rtol=1e-3, atol=1e-4)


def valley(points: Tensor) -> float:
    """Fraction of the points in the middle fifth between both modes."""
    axis = MEANS[1] - MEANS[0]
    along = (points - MEANS[0]) @ axis / axis.square().sum()
    return ((along > 0.4) & (along < 0.6)).float().mean().item()


def check(points: Tensor) -> None:
    """Mean, covariance and both modes of the mixture, each with its share, its place and its own covariance."""
    mean = WEIGHTS @ MEANS
    covariance = COVARIANCE + (MEANS - mean).T @ ((MEANS - mean) * WEIGHTS[:, None])
    torch.testing.assert_close(points.mean(0), mean, rtol=0.0, atol=0.08)
    torch.testing.assert_close(points.T.cov(), covariance, rtol=0.0, atol=0.08)
    nearest = torch.cdist(points, MEANS).argmin(1)
    for mode in (0, 1):
        own = points[nearest == mode]
        assert abs(len(own) / len(points) - WEIGHTS[mode]) < 0.04
        torch.testing.assert_close(own.mean(0), MEANS[mode], rtol=0.0, atol=0.05)
        torch.testing.assert_close(own.T.cov(), COVARIANCE, rtol=0.0, atol=0.03)
    assert valley(points) < 0.04


def test_check_passes_on_the_mixture_itself() -> None:
    check(mixture(4000, torch.Generator().manual_seed(1)))


def test_generator_recovers_mean_covariance_and_both_modes() -> None:
    check(train(4000))


def test_without_the_fake_score_the_generator_collapses() -> None:
    """The control: a teacher alone pulls every sample to one place; the fake score is what keeps the width."""
    points = train(1000, with_fake=False)
    assert points.T.cov().trace() < 0.05 * COVARIANCE.trace()


def test_training_is_deterministic() -> None:
    assert torch.equal(train(20), train(20))
