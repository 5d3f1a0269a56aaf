"""Training of the autoencoder: latents are principal components of 4 x 4 patches, from which the decoder reconstructs.

An unconstrained autoencoder needs hours on a CPU for good reconstructions. The best linear code with 8 values per patch
preserves every attribute (99% accuracy each, by the inspector), is smooth, and allows training the denoiser and the
decoder at the same time. The encoder is a stock one that learns this code by regression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashdmd_cli.building.loop import train
from flashdmd_cli.building.pool import Pool, load_pool

BATCH = 32
PATCH = 4
CHANNELS = 8
POSTERIOR_LOGVAR = -6.0


@dataclass(frozen=True)
class PatchCode:
    """Linear code (PCA) of picture patches."""

    mean: Tensor  # (48,)
    basis: Tensor  # (48, 8)
    scale: Tensor  # (8,)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) to latents (B, 8, H / 4, W / 4) of overall standard deviation 1."""
        patches = F.pixel_unshuffle(pictures, PATCH).movedim(1, -1)
        return (((patches - self.mean) @ self.basis) / self.scale).movedim(-1, 1)


def load_code(work: Path, pool: Pool) -> PatchCode:
    """The code computed from the pool, cached in the build folder."""
    path = work / "code.safetensors"
    if not path.exists():
        patches = F.pixel_unshuffle(pool.pictures(torch.arange(4000)), PATCH).movedim(1, -1).flatten(0, 2)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        spread = values.flip(0)[:CHANNELS].sqrt()
        # Half-way to whitening: detail has a lower variance than colour, so noise hides it earlier, as in pictures.
        scale = spread.sqrt()
        scale = scale * (spread / scale).square().mean().sqrt()
        basis = vectors.flip(1)[:, :CHANNELS].contiguous()
        save_file({"mean": patches.mean(0), "basis": basis, "scale": scale}, path)
    return PatchCode(**load_file(path))


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder with a downsampling factor of 4 and 8 latent channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def build_vae(
    work: Path, out: Path, steps: int = 6000, seed: int = 0, say: Callable[[str], None] = print
) -> AutoencoderKL:
    """Train the autoencoder and write it to `out` as a stock diffusers folder."""
    pool = load_pool(work)
    code = load_code(work, pool)
    torch.manual_seed(seed)
    vae = new_vae().to(memory_format=torch.channels_last)

    def loss_fn(generator: torch.Generator) -> dict[str, Tensor]:
        x = pool.pictures(torch.randint(len(pool), (BATCH,), generator=generator))
        z = code.encode(x)
        # Noise makes the decoder robust to the small errors of a denoiser.
        level = 0.1 * torch.rand((BATCH, 1, 1, 1), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(z + level * torch.randn(z.shape, generator=generator)).sample.float()
        pixel = F.l1_loss(y, x)
        slope = torch.stack([F.l1_loss(a, b) for a, b in zip(_gradients(y), _gradients(x), strict=True)]).sum()
        coarse = F.l1_loss(F.avg_pool2d(y, PATCH), F.avg_pool2d(x, PATCH))
        losses = {"loss": pixel + slope + coarse, "pixel": pixel, "slope": slope}
        # The regression is easy; training the encoder in a quarter of the steps is enough.
        if torch.rand((), generator=generator) < 0.25:
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(x).latent_dist
            posterior_loss = F.mse_loss(posterior.mean.float(), z)
            posterior_loss = posterior_loss + 0.01 * (posterior.logvar.float() - POSTERIOR_LOGVAR).square().mean()
            losses = losses | {"loss": losses["loss"] + posterior_loss, "encoder": posterior_loss}
        return losses

    vae = train("vae", vae, loss_fn, work, steps, lr=2e-3, seed=seed, say=say, ema_decay=0.99)
    vae.save_pretrained(out)
    return vae
