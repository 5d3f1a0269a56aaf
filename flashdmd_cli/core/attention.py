"""Which attention kernel pays for samples of a given size."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

PLAIN_ATTENTION_TOKENS = 1024
"""Below this many tokens the attention matrix is cheap."""


def attention_kernel(x: Tensor) -> AbstractContextManager[None]:
    """The attention kernel for latents `x` (B, C, h, w): plain products where few tokens meet on a CPU.

    There, the flash kernel's backward pass takes longer than everything else in the attention blocks together.
    """
    if x.device.type == "cpu" and x.shape[-2] * x.shape[-1] <= PLAIN_ATTENTION_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
