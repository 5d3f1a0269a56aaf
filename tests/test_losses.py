"""Every loss against its formula, written again in numpy float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from flashdmd_cli.core.losses import (
    denoising_loss,
    distribution_matching_loss,
    dm_gradient,
    ema_update_,
    hinge_discriminator_loss,
    hinge_generator_loss,
    softplus_discriminator_loss,
    softplus_generator_loss,
)

SHAPE = (3, 4, 5, 6)


def draw(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def three(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, x0_real, x0_fake; the samples differ in size by powers of ten, so that a mean over the batch shows."""
    size = torch.tensor([0.1, 1.0, 10.0])[:, None, None, None]
    x, real, fake = (draw(seed, *SHAPE) * size for seed in (1, 2, 3))
    return x.to(dtype), real.to(dtype), fake.to(dtype)


def logits(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Three heads with maps of different sizes, so that a mean over all positions at once shows."""
    return [draw(seed + i, 3, 1, n, m, scale=2.0, dtype=dtype) for i, (n, m) in enumerate([(2, 3), (4, 4), (1, 7)])]


def f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def expected_gradient(x: Tensor, real: Tensor, fake: Tensor) -> np.ndarray:
    """Eq. 4 sample by sample, as the paper writes it."""
    rows = []
    for a, r, f in zip(f64(x), f64(real), f64(fake), strict=True):
        rows.append(((a - r) - (a - f)) / np.sum(np.abs(a - r)) * a.size)
    return np.stack(rows)


def per_sample(maps: Sequence[Tensor], of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`of` averaged over each sample's map, then over heads, with plain loops."""
    batch = len(maps[0])
    return np.array([sum(of(f64(m)[b]).mean() for m in maps) / len(maps) for b in range(batch)])


def softplus(a: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, a)


def test_dm_gradient_is_equation_4() -> None:
    x, real, fake = three()
    np.testing.assert_allclose(f64(dm_gradient(x, real, fake)), expected_gradient(x, real, fake), rtol=1e-5, atol=1e-6)


def test_dm_gradient_points_from_real_to_fake() -> None:
    """A descent step must move x towards what the teacher sees, away from what the fake score sees."""
    x = torch.zeros(1, 2, 1, 1)
    gradient = dm_gradient(x, x0_real=x + 1, x0_fake=x - 1)
    assert torch.equal(gradient, torch.full_like(x, -2.0))


def test_dm_gradient_does_not_depend_on_the_rest_of_the_batch() -> None:
    x, real, fake = three()
    whole = dm_gradient(x, real, fake)
    for i in range(3):
        assert torch.equal(dm_gradient(x[i : i + 1], real[i : i + 1], fake[i : i + 1])[0], whole[i])


def test_dm_gradient_clamps_a_teacher_that_would_not_move_the_sample() -> None:
    x = torch.zeros(1, 2, 1, 1)
    assert dm_gradient(x, x, x + 3e-6).flatten().tolist() == pytest.approx([3.0, 3.0])
    assert dm_gradient(x, x - 1e-5, x).flatten().tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autograd_of_the_loss_is_the_closed_form(dtype: torch.dtype) -> None:
    x, real, fake = three(dtype)
    x.requires_grad_(True)
    real.requires_grad_(True)
    fake.requires_grad_(True)
    loss = distribution_matching_loss(x, real, fake)
    loss.backward()
    expected = expected_gradient(x, real, fake)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(0.5 * np.mean(expected**2), rel=1e-4)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
    assert x.grad is not None and x.grad.dtype == dtype
    np.testing.assert_allclose(f64(x.grad), expected / x.numel(), rtol=tolerance, atol=1e-7)
    np.testing.assert_allclose(f64(x.grad), f64(dm_gradient(x, real, fake)) / x.numel(), rtol=tolerance, atol=1e-7)
    assert real.grad is None and fake.grad is None  # the scores are targets, never trained by this loss


def test_loss_and_gradient_vanish_when_fake_is_real() -> None:
    x, real, _ = three()
    x.requires_grad_(True)
    loss = distribution_matching_loss(x, real, real.clone())
    loss.backward()
    assert loss.item() == 0 and x.grad is not None and not x.grad.any()


def test_gradient_is_zero_also_where_all_three_coincide() -> None:
    x, _, _ = three()
    assert not dm_gradient(x, x.clone(), x.clone()).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [1, 2])
def test_a_broken_score_gives_no_gradient_there_and_leaves_other_samples_alone(bad: float, which: int) -> None:
    good = three()
    broken = [part.clone() for part in good]
    broken[which][1, 2, 3, 4] = bad
    x = broken[0].requires_grad_(True)
    loss = distribution_matching_loss(x, broken[1], broken[2])
    loss.backward()
    assert x.grad is not None and x.grad.isfinite().all() and loss.isfinite()
    assert x.grad[1, 2, 3, 4] == 0
    expected = expected_gradient(*good) / x.numel()
    np.testing.assert_allclose(f64(x.grad)[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-7)
    if which == 2:  # the scale is the teacher's, so a broken fake score spoils one entry only
        rest = np.ones(SHAPE[1:], dtype=bool)
        rest[2, 3, 4] = False
        np.testing.assert_allclose(f64(x.grad)[1][rest], expected[1][rest], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denoising_loss(dtype: torch.dtype) -> None:
    a, b = draw(1, *SHAPE, dtype=dtype), draw(2, *SHAPE, dtype=dtype)
    loss = denoising_loss(a, b)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(np.mean((f64(a) - f64(b)) ** 2), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("loss", "on_real", "on_fake"),
    [
        (hinge_discriminator_loss, lambda a: np.maximum(0, 1 - a), lambda a: np.maximum(0, 1 + a)),
        (softplus_discriminator_loss, lambda a: softplus(-a), softplus),
    ],
)
def test_discriminator_losses(
    loss: Callable[..., Tensor],
    on_real: Callable[[np.ndarray], np.ndarray],
    on_fake: Callable[[np.ndarray], np.ndarray],
    dtype: torch.dtype,
) -> None:
    real, fake = logits(1, dtype), logits(11, dtype)
    value = loss(real, fake)
    assert value.dtype == torch.float32 and value.shape == ()
    expected = per_sample(real, on_real).mean() + per_sample(fake, on_fake).mean()
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.0, 0.5, 2.0])])
@pytest.mark.parametrize(
    ("loss", "of"), [(hinge_generator_loss, lambda a: -a), (softplus_generator_loss, lambda a: softplus(-a))]
)
def test_generator_losses(
    loss: Callable[..., Tensor], of: Callable[[np.ndarray], np.ndarray], weight: Tensor | None
) -> None:
    fake = logits(1)
    scores = per_sample(fake, of)
    expected = np.mean(scores if weight is None else scores * f64(weight))
    assert loss(fake, weight).item() == pytest.approx(expected, rel=1e-5)


def test_softplus_losses_are_the_logarithms_of_the_paper() -> None:
    """Eq. 5 and 10 are written with D = sigmoid(logit)."""
    real, fake = logits(1), logits(11)

    def probability(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    generator = per_sample(fake, lambda a: -np.log(probability(a))).mean()
    discriminator = per_sample(real, lambda a: -np.log(probability(a))).mean()
    discriminator += per_sample(fake, lambda a: -np.log(1 - probability(a))).mean()
    assert softplus_generator_loss(fake).item() == pytest.approx(generator, rel=1e-5)
    assert softplus_discriminator_loss(real, fake).item() == pytest.approx(discriminator, rel=1e-5)


def test_softplus_losses_stay_finite_far_out() -> None:
    far = [torch.full((2, 1, 2, 2), 200.0)]
    assert softplus_discriminator_loss([-m for m in far], far).item() == pytest.approx(400.0)
    assert softplus_generator_loss([-m for m in far]).item() == pytest.approx(200.0)
    assert softplus_generator_loss(far).item() == 0.0


def test_hinge_discriminator_is_content_beyond_the_margin() -> None:
    real, fake = torch.tensor([1.5, 0.5]).view(2, 1, 1, 1), torch.tensor([-1.5, -0.5]).view(2, 1, 1, 1)
    real.requires_grad_(True)
    fake.requires_grad_(True)
    hinge_discriminator_loss([real], [fake]).backward()
    assert real.grad is not None and real.grad.flatten().tolist() == [0.0, -0.5]
    assert fake.grad is not None and fake.grad.flatten().tolist() == [0.0, 0.5]


@pytest.mark.parametrize("loss", [hinge_generator_loss, softplus_generator_loss])
def test_generator_losses_want_higher_logits(loss: Callable[..., Tensor]) -> None:
    fake = [m.requires_grad_(True) for m in logits(1)]
    loss(fake).backward()
    assert all(m.grad is not None and (m.grad < 0).all() for m in fake)


def test_ema_update_moves_the_target_in_place_and_leaves_the_source() -> None:
    target = [torch.nn.Parameter(draw(1, 3, 4)), torch.nn.Parameter(draw(2, 5))]
    source = [torch.nn.Parameter(draw(3, 3, 4)), torch.nn.Parameter(draw(4, 5))]
    old, new = [f64(t).copy() for t in target], [f64(s).copy() for s in source]
    storage = [t.data_ptr() for t in target]
    ema_update_(iter(target), iter(source), 0.97)
    for t, s, a, b, address in zip(target, source, old, new, storage, strict=True):
        np.testing.assert_allclose(f64(t), 0.97 * a + 0.03 * b, rtol=1e-5, atol=1e-6)
        assert np.array_equal(f64(s), b)
        assert t.data_ptr() == address and t.requires_grad and t.is_leaf


@pytest.mark.parametrize(("decay", "kept"), [(1.0, 0), (0.0, 1)])
def test_ema_update_at_its_ends(decay: float, kept: int) -> None:
    target, source = draw(1, 4), draw(2, 4)
    expected = (target.clone(), source.clone())[kept]
    ema_update_([target], [source], decay)
    assert torch.equal(target, expected)


def test_ema_update_refuses_lists_of_different_length() -> None:
    with pytest.raises(RuntimeError):
        ema_update_([draw(1, 2)], [draw(1, 2), draw(2, 2)], 0.9)
