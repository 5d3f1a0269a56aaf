"""Training of the small SAM whose image encoder is the trunk of the pixel discriminator: point prompts to masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from flashdmd_cli.building.loop import train
from flashdmd_cli.networks.sam import new_sam
from flashdmd_cli.shapes.render import masks, render
from flashdmd_cli.shapes.world import IMAGE_SIZE, sample_scenes

BATCH = 16

SAM_CONFIG: dict[str, Any] = {
    "class": "segment_anything.Sam",
    "image_encoder": {
        "img_size": IMAGE_SIZE,
        "patch_size": 4,
        "embed_dim": 96,
        "depth": 6,
        "num_heads": 3,
        "out_chans": 64,
        "use_rel_pos": True,
        "window_size": 8,
        "global_attn_indexes": [1, 3, 5],
    },
    "prompt_encoder": {"mask_in_chans": 8},
    "mask_decoder": {
        "depth": 2,
        "num_heads": 4,
        "mlp_dim": 256,
        "num_multimask_outputs": 0,
        "iou_head_depth": 2,
        "iou_head_hidden_dim": 64,
    },
}


def build_sam(
    work: Path, out: Path, steps: int = 3000, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Train the small SAM on point prompts, write `out/config.json` and `out/model.safetensors`.

    Returns `miou`, the mean intersection over union on scenes of held-out attribute combinations.
    """
    torch.manual_seed(seed)
    sam = new_sam(SAM_CONFIG)

    def loss_fn(generator: torch.Generator) -> dict[str, Tensor]:
        pictures, truth = draw(BATCH, generator)
        points = points_inside(truth, generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits, quality = predict(sam, pictures, points)
        return mask_losses(logits.float(), quality.float(), truth)

    average = train("sam", sam, loss_fn, work, steps, lr=1e-3, seed=seed, say=say, ema_decay=0.998)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(SAM_CONFIG, indent=2) + "\n")
    save_file({key: value.contiguous() for key, value in average.state_dict().items()}, out / "model.safetensors")
    return {"miou": held_out_iou(average)}


def draw(num: int, generator: torch.Generator, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """`num` rendered pictures (num, 3, 64, 64) on [-1, 1] and the masks of both objects (num, 2, 64, 64) bool."""
    scenes = sample_scenes(num, generator, held_out)
    return render(scenes, generator), masks(scenes)


def points_inside(truth: Tensor, generator: torch.Generator) -> Tensor:
    """A random pixel of each mask: x, y in pixels (B, 2, 2), for masks (B, 2, H, W)."""
    width = truth.shape[-1]
    index = torch.multinomial(truth.flatten(0, 1).flatten(1).float(), 1, generator=generator).view(truth.shape[:2])
    return torch.stack([index % width, index // width], dim=-1)


def predict(sam: Sam, pictures: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mask logits (B, 2, H, W) and predicted quality (B, 2) for one point (B, 2, 2) on each of two objects."""
    batch, num = points.shape[:2]
    image = sam.image_encoder(((pictures + 1) * 127.5 - sam.pixel_mean) / sam.pixel_std)
    prompts = points.reshape(-1, 1, 2).float(), torch.ones(batch * num, 1)
    sparse, dense = sam.prompt_encoder(points=prompts, boxes=None, masks=None)
    # The decoder supports one picture with several prompts. It adds the dense prompt embedding to the picture's, so
    # adding the picture embeddings to the dense prompts, with zeros as picture, gives a batch of pictures.
    logits, quality = sam.mask_decoder(
        image_embeddings=torch.zeros_like(image[:1]),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense + image.repeat_interleave(num, dim=0),
        multimask_output=False,
    )
    return logits.view(batch, num, *logits.shape[-2:]), quality.view(batch, num)


def intersection_over_union(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU (B, 2) of the predicted masks, where `logits` is positive, with the true ones."""
    predicted = logits > 0
    return (predicted & truth).sum((-2, -1)) / (predicted | truth).sum((-2, -1)).clamp(min=1)


def mask_losses(logits: Tensor, quality: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """SAM's losses: 20 times focal plus dice loss for the masks, squared error for the predicted IoU."""
    target = truth.float()
    focal = sigmoid_focal_loss(logits, target, reduction="mean")
    predicted = logits.sigmoid()
    overlap, area = (predicted * target).sum((-2, -1)), (predicted + target).sum((-2, -1))
    dice = (1 - (2 * overlap + 1) / (area + 1)).mean()
    iou = intersection_over_union(logits, truth)
    loss = 20 * focal + dice + F.mse_loss(quality, iou)
    return {"loss": loss, "focal": focal, "dice": dice, "iou": iou.mean()}


@torch.no_grad()
def held_out_iou(sam: Sam, num: int = 1000) -> float:
    """Mean intersection over union with one point per object on `num` held-out scenes."""
    generator = torch.Generator().manual_seed(99)
    scores = []
    for _ in range(0, num, 50):
        pictures, truth = draw(50, generator, held_out=True)
        logits, _ = predict(sam, pictures, points_inside(truth, generator))
        scores.append(intersection_over_union(logits, truth))
    return torch.cat(scores).mean().item()
