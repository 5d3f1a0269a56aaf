"""How scorers compute: without gradients and in float32 alone, for half precision and TF32 change their values by more
than the fourth decimal (`docs/log/2026-11-27-metrics.md`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Result = TypeVar("Result")


def exact(function: Callable[P, Result]) -> Callable[P, Result]:
    """`function` without gradients, autocast and TF32, whatever is set around it."""

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Result:
        convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
                return function(*args, **kwargs)
        finally:
            torch.backends.cudnn.allow_tf32 = convolutions
            torch.set_float32_matmul_precision(products)

    return inner
