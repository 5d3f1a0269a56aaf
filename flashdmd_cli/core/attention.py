"""Choice of the attention kernel by device and number of tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

PLAIN_ATTENTION_TOKENS = 1024
"""Up to this many tokens the attention matrix is cheap to compute and store."""


def attention_kernel(x: Tensor) -> AbstractContextManager[None]:
    """Context with the attention kernel for latents `x` (B, C, h, w): plain matrix products on a CPU with few tokens.

    In that case the flash kernel's backward pass takes longer than the rest of the attention blocks together.
    """
    if x.device.type == "cpu" and x.shape[-2] * x.shape[-1] <= PLAIN_ATTENTION_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
