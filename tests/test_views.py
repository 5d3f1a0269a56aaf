"""What a discriminator looks at: a crop is the same place of the whole picture, for latents and pixels alike."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.steps import Objective

from .test_distill import recipe

SCALE, SIDE = 4, 16
BLUR = torch.full((3, 3, 5, 5), 1 / 75)


def decode(latents: Tensor) -> Tensor:
    """A decoder that sees less than a latent pixel far; its answer is in half precision, as autocast leaves it."""
    large = F.interpolate(latents[:, :3], scale_factor=SCALE, mode="nearest")
    return F.conv2d(large, BLUR, padding=2).to(torch.bfloat16)


def objective(**sets: object) -> Objective:
    family = SimpleNamespace(resolution=32, latent_shape=(4, 8, 8), autocast=nullcontext, decode=decode,
                             encode_pictures=lambda x: F.avg_pool2d(x, SCALE)[:, [0, 1, 2, 0]])  # fmt: skip
    return Objective(recipe(gan__decode="crop", gan__crop_px=SIDE, **sets), family, None)  # type: ignore[arg-type]


def draws(number: int, rows: int = 2) -> Draws:
    return Draws(0, number, range(rows), torch.device("cpu"))


def places(whole: Tensor, part: Tensor) -> list[tuple[int, int]]:
    """For each row, the top left corner at which `part` (B, C, h, w) is cut out of `whole` (B, C, H, W), if any."""
    windows = whole.unfold(2, part.shape[2], 1).unfold(3, part.shape[3], 1)
    same = (windows == part[:, :, None, None]).all(dim=(1, 4, 5))
    return [(int(y), int(x)) for _, y, x in same.nonzero()]


def test_a_crop_is_a_place_of_the_whole_picture():
    """Latents wider than high, so that an exchange of the sides shows; every place comes up, up to the edges."""
    o, found, apart = objective(gan__crop_margin_latents=1), set(), 0
    for number in range(150):
        latents = torch.randn(2, 4, 6, 9, generator=torch.Generator().manual_seed(number))
        part = o.view(latents, draws(number))
        assert part.shape == (2, 3, SIDE, SIDE) and part.dtype == torch.float32
        one, two = ((y / SCALE, x / SCALE) for y, x in places(decode(latents).float(), part))
        found |= {one, two}
        apart += one != two
    assert found == {(y, x) for y in range(3) for x in range(6)}
    assert apart > 120  # each row has a place of its own


def test_without_a_margin_a_crop_shows_its_edge():
    latents = torch.randn(1, 4, 8, 8)
    parts = [objective(gan__crop_margin_latents=0).view(latents, draws(number, 1)) for number in range(5)]
    assert any(not places(decode(latents).float(), part) for part in parts)


def test_a_crop_of_real_pictures_is_drawn_apart_from_the_students():
    o, found = objective(), set()
    pictures = torch.randn(2, 3, 20, 28)
    for number in range(300):
        part = o.real_view(pictures, None, draws(number))
        assert part.shape == (2, 3, SIDE, SIDE)
        corners = places(pictures, part)
        assert len(corners) == 2
        found |= set(corners)
    assert found == {(y, x) for y in range(5) for x in range(13)}
    square = torch.randn(1, 4, 8, 8)
    corners = [(places(decode(square).float(), o.view(square, draws(n, 1)))[0],
                places(decode(square).float(), o.real_view(decode(square).float(), None, draws(n, 1)))[0])
               for n in range(20)]  # fmt: skip
    assert sum((y // SCALE, x // SCALE) == (v // SCALE, u // SCALE) for (y, x), (v, u) in corners) < 10


def test_real_pictures_go_through_the_autoencoder_on_request():
    """And are cropped where the student's are; their cached latents are used where there are any."""
    o, pictures = objective(gan__real="vae_roundtrip"), torch.randn(2, 3, 32, 32)
    latents = o.family.encode_pictures(pictures)
    assert torch.equal(o.real_view(pictures, None, draws(3)), o.view(latents, draws(3)))
    assert torch.equal(o.real_view(torch.zeros_like(pictures), latents, draws(3)), o.view(latents, draws(3)))


def test_whole_pictures_are_float32_too():
    o = objective(gan__real="vae_roundtrip")
    o = Objective(recipe(gan__decode="full"), o.family, None)  # type: ignore[arg-type]
    assert o.view(torch.randn(1, 4, 8, 8), draws(0, 1)).dtype == torch.float32


def test_a_crop_larger_than_the_teachers_pictures_is_refused():
    with pytest.raises(UsageError, match="^gan.crop_px: 512 exceeds the teacher's resolution of 32 pixels") as caught:
        Objective(recipe(gan__decode="crop", gan__crop_px=512), objective().family, None)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2 and "gan.decode=full" in caught.value.hint
    Objective(recipe(gan__decode="crop", gan__kind="none"), objective().family, None)  # type: ignore[arg-type]
