"""Training of the inspector on rendered pictures, with augmentation against the slight blur of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from flashdmd_cli.building.loop import train
from flashdmd_cli.building.pool import Pool, draw_pool, load_pool
from flashdmd_cli.shapes.inspector import Inspector

BATCH = 64


def build_inspector(
    work: Path, out: Path, steps: int = 2600, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Train the inspector and write `out/inspector.safetensors`; returns its accuracy on held-out scenes."""
    pool = load_pool(work)
    torch.manual_seed(seed)
    model = Inspector()

    def loss_fn(generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(pool), (BATCH,), generator=generator)
        pictures = pool.pictures(index)
        if torch.rand((), generator=generator) < 0.3:
            pictures = gaussian_blur(pictures, [3, 3], [0.3 + 0.4 * torch.rand((), generator=generator).item()])
        pictures = pictures + 0.03 * torch.randn(pictures.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            heads, pattern, layout, _ = model(pictures)
        columns = zip(heads, pool.attributes[index].unbind(1), strict=True)
        attribute = sum(F.cross_entropy(logits.float(), truth) for logits, truth in columns)
        ground = F.cross_entropy(pattern.float(), pool.pattern[index])
        place = F.smooth_l1_loss(layout.float(), pool.layout[index], beta=0.02)
        return {"loss": attribute + 0.5 * ground + place, "pattern": ground, "layout": place}

    average = train("inspector", model, loss_fn, work, steps, lr=2e-3, seed=seed, say=say, ema_decay=0.995)
    _settle_batch_norm(average, pool)
    out.mkdir(parents=True, exist_ok=True)
    save_file(average.state_dict(), out / "inspector.safetensors")
    return held_out_accuracy(average)


@torch.no_grad()
def _settle_batch_norm(model: Inspector, pool: Pool) -> None:
    # Averaged weights need their own batch statistics; averaged running statistics would not fit them.
    torch.optim.swa_utils.update_bn((pool.pictures(torch.arange(s, s + 250)) for s in range(0, 10_000, 250)), model)
    model.eval()


def held_out_accuracy(model: Inspector, num: int = 4000) -> dict[str, float]:
    """Accuracy on pictures of held-out combinations: each attribute, all seven, pattern; error of the layout."""
    pool = draw_pool(num, seed=99, held_out=True)
    reading = model.read(pool.pictures(torch.arange(num)))
    correct = reading.attributes == pool.attributes
    return {
        **{f"attribute_{i}": value for i, value in enumerate(correct.float().mean(0).tolist())},
        "composition": correct.all(1).float().mean().item(),
        "pattern": (reading.pattern == pool.pattern).float().mean().item(),
        "layout_error": (reading.layout - pool.layout).abs().mean().item(),
    }
