"""Object counting by colour and rim, without training, so that its errors are independent of the inspector's.

The inspector always classifies two objects, so neither it nor a model trained on its labels can detect a third one.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

SATURATED, BRIGHT = 0.62, 0.45
"""Minimum saturation and brightness of coloured objects; no background is as saturated."""
WHITE, RIM = 0.75, 0.3
"""Minimum of all channels in a white object; maximum of all channels in a rim, also fulfilled by dark backgrounds."""
MIN_REGION, MIN_COLOURED = 60, 25
"""Minimum number of pixels of a region and of its coloured part, more than for grain and dark background corners."""


def count_objects(pictures: Tensor) -> Tensor:
    """Number of objects (N,) long in each of `N` pictures (N, 3, 64, 64) on [-1, 1].

    Coloured pixels and the areas inside dark rims form regions; those with enough colour are objects. Objects that
    touch, or are on a background as dark as their rims, count as one: of 4,000 rendered pictures with three objects,
    84% are counted correctly; of 4,000 with two objects, 2 are counted as three.
    """
    pixels = (pictures.float().cpu() + 1) / 2
    high, low = pixels.amax(dim=1), pixels.amin(dim=1)
    saturated = ((high - low) / high.clamp(min=1e-3) > SATURATED) & (high > BRIGHT)
    inside, coloured = saturated | (high < RIM), saturated | (low > WHITE)
    return torch.tensor([_regions(*each) for each in zip(inside.numpy(), coloured.numpy(), strict=True)])


def _regions(inside: np.ndarray, coloured: np.ndarray) -> int:
    # Opening removes dark stripes of the background that would connect objects.
    labels, num = ndimage.label(ndimage.binary_opening(ndimage.binary_fill_holes(inside), iterations=2))
    area = np.bincount(labels.ravel(), minlength=num + 1)[1:]
    with_colour = np.bincount(labels.ravel(), weights=coloured.ravel(), minlength=num + 1)[1:]
    return int(((area >= MIN_REGION) & (with_colour >= MIN_COLOURED)).sum())
