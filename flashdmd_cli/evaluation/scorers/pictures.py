"""Pictures of 8 bits as the inputs of scorers. Sizes are changed with Pillow, as the authors of the scorers did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def each(pictures: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """`change` applied to each of (B, 3, H, W) uint8, which must give one size."""
    arrays = [np.array(change(Image.fromarray(picture))) for picture in pictures.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def normalized(pictures: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pictures (B, 3, H, W) of 8 bits, or float on [0, 1], minus `mean` over `std`, float32."""
    values = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    return (values - values.new_tensor(mean).view(-1, 1, 1)) / values.new_tensor(std).view(-1, 1, 1)


def shortest_edge(pictures: Tensor, size: int) -> Tensor:
    """Bicubic to a shortest edge of `size`, then its centre (B, 3, size, size) uint8: CLIP's and BLIP's preparation.

    The crop starts where torchvision's does; of an odd margin the smaller half may be on either side.
    """
    return each(
        pictures, lambda image: vision.center_crop(vision.resize(image, [size], InterpolationMode.BICUBIC), [size])
    )


def shortest_edge_transformers(pictures: Tensor, size: int) -> Tensor:
    """As `shortest_edge`, with the crop of transformers' image processors: of an odd margin, the smaller half first."""

    def change(image: Image.Image) -> Image.Image:
        resized = vision.resize(image, [size], InterpolationMode.BICUBIC)
        left, top = (resized.width - size) // 2, (resized.height - size) // 2
        return resized.crop((left, top, left + size, top + size))

    return each(pictures, change)


def centre_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    return vision.center_crop(image, [min(image.size)])


def square(pictures: Tensor, size: int) -> Tensor:
    """The centre square, resized to `size` with Lanczos' filter: DMD2's preparation for CLIP score and FID."""
    return each(pictures, lambda image: centre_square(image).resize((size, size), Image.Resampling.LANCZOS))


def longest_edge(pictures: Tensor, size: int) -> Tensor:
    """Bicubic on floats to a longest edge of `size`, black borders to a square: HPSv2's preparation, on [0, 1] and
    a little beyond where the filter overshoots. With antialiasing, the default of torchvision since 0.17."""
    values = pictures.float() / 255
    height, width = pictures.shape[-2:]
    scale = size / max(height, width)
    if scale != 1:
        shape = [max(1, round(height * scale)), max(1, round(width * scale))]
        values = vision.resize(values, shape, InterpolationMode.BICUBIC, antialias=True)
    return pad_to(values, size)


def pad_to(values: Tensor, size: int) -> Tensor:
    """Zeros around (B, 3, H, W), as evenly as possible, to (B, 3, size, size)."""
    down, right = size - values.shape[-2], size - values.shape[-1]
    return F.pad(values, (right // 2, right - right // 2, down // 2, down - down // 2))
